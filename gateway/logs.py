"""Logging: one JSON object a line (or colours on a terminal), a request id on each, never a prompt and never a key."""

import logging
import re
import sys
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor

SECRET = re.compile(r"hst_[A-Za-z0-9_]{8,}|Bearer\s+\S+|Basic\s+\S+", re.IGNORECASE)
"""What a credential looks like. A fence behind the rule that no code logs one."""


def redact(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Replace whatever looks like a credential in any text value."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = SECRET.sub("[redacted]", value)
    return event


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
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(least, logging.WARNING))
