"""What a job tells its manager: JSON lines on stdout, each flushed at once."""

import json
import sys
import threading
import time

INTERVAL_SECONDS = 0.5


def tell(event: str, **facts: object) -> None:
    """Print one event as one line of JSON. A reader that is gone is no reason to stop."""
    try:
        sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        return


class Meter:
    """Counts the bytes that have arrived, from several threads, and tells about them not too often."""

    def __init__(self, bytes_done: int, bytes_total: int) -> None:
        self._lock = threading.Lock()
        self._done = bytes_done
        self._total = bytes_total
        self._told: int | None = None
        self._told_at = -INTERVAL_SECONDS

    @property
    def bytes_done(self) -> int:
        """Bytes that are on the disk, of those that will be."""
        with self._lock:
            return self._done

    def add(self, count: int) -> None:
        """Count bytes that arrived; a negative count takes back what turned out to be broken."""
        with self._lock:
            self._done += count

    def tell(self) -> None:
        """Print a progress event, if something changed and the last one is long enough ago."""
        done, now = self.bytes_done, time.monotonic()
        if done == self._told or now - self._told_at < INTERVAL_SECONDS:
            return
        self._told, self._told_at = done, now
        tell("progress", bytes_done=done, bytes_total=self._total)
