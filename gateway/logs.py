"""Logging: one JSON object a line (or colours on a terminal), a request id on each, never a prompt and never a key.

The line that each inference request leaves is the only one on the hot path. It is encoded by hand to the shape of all
others, and written with those of the same moment; a process that is killed may lose the last FLUSH_SECONDS of them.
"""

import asyncio
import atexit
import functools
import logging
import re
import sys
import threading
import time
from pathlib import Path
from traceback import extract_tb
from typing import Any, Literal, NamedTuple, TextIO, cast

import msgspec
import structlog
from structlog.typing import EventDict, Processor

FLUSH_SECONDS = 0.05
ADDED = frozenset({"level", "timestamp"})
"""What structlog's own processors add to a line."""
CAUSES = 5
"""Exceptions behind one another that are told at most."""
FLUSH_LINES = 256
"""Lines of requests that are kept back at most."""

LINE = b'{"request_id":"%b%b%.1f,"queue_ms":%b%b%b.%06dZ"}\n'

SECRET = re.compile(r"hst_[A-Za-z0-9_]{8,}|hf_[A-Za-z0-9]{20,}|Bearer\s+\S+|Basic\s+\S+", re.IGNORECASE)
"""What a credential looks like. A fence behind the rule that no code logs one."""


def redact(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Replace whatever looks like a credential in any text value."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = SECRET.sub("[redacted]", value)
    return event


def clean(text: str) -> str:
    """The text without what looks like a credential; our own request ids need no look."""
    return text if text.isalnum() else _cleaned(text)


@functools.lru_cache(maxsize=256)
def _cleaned(text: str) -> str:
    return SECRET.sub("[redacted]", text)


def whereabouts(problem: BaseException) -> str:
    """What went wrong and where in the code, the newest call first; without messages, which may quote a prompt."""
    found: list[str] = []
    seen: BaseException | None = problem
    while seen is not None and len(found) < CAUSES:
        calls = [f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in extract_tb(seen.__traceback__)]
        found.append(f"{type(seen).__name__} in " + ", ".join(reversed(calls)))
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "; from ".join(found)


class RequestLine(msgspec.Struct):
    """What the log says of one inference request. Times are milliseconds."""

    request_id: str
    method: str
    path: str
    status: int
    endpoint: str
    worker: str | None
    key: str | None
    ms: float
    queue_ms: float
    stream: bool
    error: str | None
    event: str = "request"
    level: str = "info"
    timestamp: str = ""


class Output:
    """Standard error as whole lines, those of requests a moment late. Everything comes in the order it was logged.

    Lines that can't be written (a log file on a full disk) are dropped: a request must not fail of its log.
    """

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        """Always the same list: appending to it needs no lock."""
        self.lost = 0
        """Lines that were dropped."""
        self._lock = threading.RLock()  # a library may log from a thread of its own

    def write(self, text: str) -> None:
        """Write a line now."""
        with self._lock:
            self._lines.append(text.encode("utf-8", "backslashreplace"))
            self.flush()

    def later(self, line: bytes) -> None:
        """Write a line soon, with others. Needs a running loop."""
        self._lines.append(line)
        waiting = len(self._lines)
        if waiting == 1:  # else somebody is to flush those before it, and looks again whether more came meanwhile
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        elif waiting >= FLUSH_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            while self._lines:
                lines = self._lines[:]
                del self._lines[: len(lines)]
                try:
                    sys.stderr.buffer.write(b"".join(lines))
                    sys.stderr.buffer.flush()
                except OSError:
                    self.lost += len(lines)


class LineParts(NamedTuple):
    """What the lines of many requests have in common: all but their ids and times."""

    line: RequestLine
    before: bytes = b""
    """Encoded: the members between id and times."""
    after: bytes = b""
    """And those behind them."""


class RequestLog:
    """Where inference requests are logged: as JSON by a short cut, in any other form like everything else."""

    def __init__(self, level: str, form: Literal["json", "console"]) -> None:
        self._wanted = logging.getLevelNamesMapping()[level.upper()] <= logging.INFO
        self._json = form == "json"
        self._encode = msgspec.json.Encoder().encode
        self._second, self._date = 0.0, b""

    def parts(self, line: RequestLine) -> LineParts:
        """What lines like this one have in common."""
        line.path = clean(line.path)
        _, _, rest = self._encode(line).partition(b',"method":')
        before, _, rest = rest.rpartition(b',"ms":')
        _, _, after = rest.partition(b',"stream":')
        after, _, _ = after.rpartition(b'"}')
        return LineParts(line, b'","method":' + before + b',"ms":', b',"stream":' + after)

    def write(self, parts: LineParts, request_id: bytes, ms: float, queue_ms: float, at: float) -> None:
        """Log a request that ended at this time (Unix seconds)."""
        if not self._wanted:
            return
        if not self._json:
            self._write_as_others(parts.line, clean(request_id.decode()), ms, queue_ms)
            return
        fraction = at - self._second
        if not 0.0 <= fraction < 1.0:  # all but the fraction is made once a second, as structlog's stamper writes it
            self._second = float(int(at))
            self._date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self._second)).encode()
            fraction = at - self._second
        # what is letters and digits only has nothing to escape, and is no credential: those have an underscore or space
        name = request_id if request_id.isalnum() else self._encode(clean(request_id.decode()))[1:-1]
        queued = b"%.1f" % queue_ms if queue_ms else b"0.0"  # which most are
        output.later(LINE % (name, parts.before, ms, queued, parts.after, self._date, fraction * 1e6))

    @staticmethod
    def _write_as_others(line: RequestLine, request_id: str, ms: float, queue_ms: float) -> None:
        fields = msgspec.structs.asdict(line) | {
            "request_id": request_id,
            "ms": round(ms, 1),
            "queue_ms": round(queue_ms, 1),
        }
        structlog.get_logger(__name__).info(**{name: fields[name] for name in fields if name not in ADDED})


output = Output()


def set_up(level: str, form: Literal["json", "console"]) -> None:
    """Configure structlog once, and send the standard library's log (uvicorn's) through it."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    least = logging.getLevelNamesMapping()[level.upper()]
    atexit.register(output.flush)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", output)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(cast("TextIO", output))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(least, logging.WARNING))
