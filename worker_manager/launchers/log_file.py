"""A unit's log as a file that never grows without end."""

from pathlib import Path

LINE_BYTES = 4096
KEPT_BYTES = 4 * 1024 * 1024


def tail(path: Path, lines: int) -> tuple[str, ...]:
    """The last lines, oldest first, without line ends; empty if there is no such file."""
    if lines <= 0:
        return ()
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - min(lines * LINE_BYTES, KEPT_BYTES)))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple(line.rstrip() for line in text.replace("\x00", "").splitlines()[-lines:])


def trim(path: Path, limit_bytes: int) -> None:
    """Drop the older part of a log that is longer than the limit, in place.

    Its writer has it open for appending, so it goes on at the new end; a line printed meanwhile may be lost.
    """
    try:
        if path.stat().st_size <= limit_bytes:
            return
        with path.open("r+b") as stream:
            stream.seek(-KEPT_BYTES, 2)
            kept = stream.read()
            stream.seek(0)
            stream.truncate()
            stream.write(kept)
    except OSError:
        return
