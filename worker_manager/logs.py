"""Structured logs on stderr."""

import logging
import sys

import structlog


def configure(level: str, form: str) -> None:
    """Set up structlog and the standard library's logging; `form` is `json` or `console`."""
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if form == "console" else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(number, logging.WARNING), stream=sys.stderr, force=True)
    # what is no HTTP is counted and logged in sums (`refusals`): a line for each would wash away all others
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
