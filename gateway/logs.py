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
from typing import Any, Literal, TextIO, cast

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

LINE = b'{"request_id":%b,%b,"ms":%.1f,"queue_ms":%.1f,%b,"timestamp":"%b"}\n'
COMMON_LIMIT = 1024
"""Kinds of requests whose common part is kept encoded; paths with ids in them are as many as there are ids."""

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
        with self._lock:
            self._lines.append(line)
            waiting = len(self._lines)
        if waiting == 1:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        elif waiting >= FLUSH_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            if self._lines:
                lines, self._lines = self._lines, []
                try:
                    sys.stderr.buffer.write(b"".join(lines))
                    sys.stderr.buffer.flush()
                except OSError:
                    self.lost += len(lines)


class RequestLog:
    """Where inference requests are logged: as JSON by a short cut, in any other form like everything else."""

    def __init__(self, level: str, form: Literal["json", "console"]) -> None:
        self._wanted = logging.getLevelNamesMapping()[level.upper()] <= logging.INFO
        self._json = form == "json"
        self._encode = msgspec.json.Encoder().encode
        self._second, self._date = 0, b""
        self._common: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}
        """What the lines of many requests have in common, encoded."""

    def write(self, line: RequestLine) -> None:
        """Log one request."""
        if not self._wanted:
            return
        request_id = clean(line.request_id)
        if self._json:
            same = (line.method, line.path, line.status, line.endpoint, line.worker, line.key, line.stream, line.error)
            before, after = self._common.get(same) or self._encoded(line, same)
            name = b'"%b"' % request_id.encode() if request_id.isalnum() else self._encode(request_id)
            output.later(LINE % (name, before, line.ms, line.queue_ms, after, self._now()))
        else:
            line.request_id, line.path = request_id, clean(line.path)
            line.ms, line.queue_ms = round(line.ms, 1), round(line.queue_ms, 1)
            fields = msgspec.structs.asdict(line)
            structlog.get_logger(__name__).info(**{name: fields[name] for name in fields if name not in ADDED})

    def _encoded(self, line: RequestLine, same: tuple[Any, ...]) -> tuple[bytes, bytes]:
        """The members of a line before its times, and those behind them."""
        line.path = clean(line.path)
        whole = self._encode(line)
        _, _, rest = whole.partition(b',"method":')
        before, _, rest = rest.rpartition(b',"ms":')
        _, _, after = rest.partition(b',"stream":')
        found = b'"method":' + before, b'"stream":' + after.rpartition(b',"timestamp":')[0]
        if len(self._common) >= COMMON_LIMIT:
            self._common.clear()
        self._common[same] = found
        return found

    def _now(self) -> bytes:
        """The time as structlog's stamper writes it; all but the fraction is made once a second."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%b.%06dZ" % (self._date, (now - second) * 1e6)


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
