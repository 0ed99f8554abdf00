"""Why an engine died, read from its exit code and its log. Pure.

Rules are tried in order, the most telling first; each line of the log is matched from the newest back, because the last
error is nearest to the death.
"""

import re
import signal
from collections.abc import Sequence

from worker_manager.contract import Failure, FailureKind
from worker_manager.engines.last_words import RULES

TAIL_LINES = 60
"""Lines of the log that a failure carries."""
LINE_CHARACTERS = 400
READ_CHARACTERS = 600
"""How much of each line is looked at: a cause stands at its beginning, and patterns take their time."""

CAUSE_IS_ELSEWHERE = re.compile(
    r"See root cause above|[Ss]ee (the )?stack trace|check the stack trace above|failed to start\.$|died unexpectedly|"
    r"EngineDeadError|output_handler failed|\bWARNING\b|Warning: |^\s*(raise|return|except) |\braise \w+|"
    r"Traceback \(most recent|\]\s+(File \"|[\^~]+$)|^\s*File \"|During handling of|direct cause of|"
    r"\]\s{2,}\S|\]\s*$|^\s+\S"
)
"""Lines that only point to the cause, or tell how the way to it led through the code."""
GIVEN_UP = re.compile(r"EngineCore failed to start\.|Engine core initialization failed")
"""What vLLM says once it will never serve. As a rule it ends then; now and then its processes wait for each other."""
ERROR_LINE = re.compile(r"\b(\w*(Error|Exception))\b|\bERROR\b|\bFATAL\b|\bfatal\b|\berror:", re.ASCII)
TERMINATED = frozenset({0, 128 + signal.SIGTERM, -signal.SIGTERM})
"""Exit codes of an engine that ended as it was told to: vLLM never ends with 0 by itself."""
AT_RUN_HINTS = {
    FailureKind.OUT_OF_MEMORY_AT_RUN: (
        "lower max-num-seqs or max-num-batched-tokens in the endpoint's engine_args, or its max_model_len, "
        "or give it more memory with gpu_memory_gib"
    )
}
AT_RUN = {FailureKind.OUT_OF_MEMORY_AT_LOAD: FailureKind.OUT_OF_MEMORY_AT_RUN}


def diagnose(
    *, exit_code: int | None, out_of_memory: bool, lines: Sequence[str], was_ready: bool, now: float
) -> Failure:
    """The failure in words. `was_ready`: it had served before it died; `now`: Unix time, seconds."""
    lines = [line[:READ_CHARACTERS] for line in lines]
    tail = _tail(lines, None)
    if out_of_memory:
        kind = FailureKind.OUT_OF_MEMORY_AT_RUN if was_ready else FailureKind.OUT_OF_MEMORY_AT_LOAD
        message = "the kernel ended the engine: it used more main memory than its limit"
        return Failure(kind=kind, message=message, hint="raise HOSTLER_ENGINE_MEMORY_GIB", log_tail=tail, at=now)
    for rule in RULES:
        if found := _newest_match(rule.pattern, lines):
            kind = AT_RUN.get(rule.kind, rule.kind) if was_ready else rule.kind
            message = f"{rule.message}: {_short(found.string)}"
            hint = AT_RUN_HINTS.get(kind) or rule.hint.format_map(found.groupdict())
            return Failure(kind=kind, message=message, hint=hint, log_tail=_tail(lines, found.string), at=now)
    return _undiagnosed(exit_code, lines, now)


def has_given_up(lines: Sequence[str]) -> bool:
    """Whether an engine says in its log that it will not come up."""
    return any(GIVEN_UP.search(line[:READ_CHARACTERS]) for line in lines)


def _undiagnosed(exit_code: int | None, lines: Sequence[str], now: float) -> Failure:
    """No rule fits: say which signal, or show the last error line that names a cause."""
    found = _newest_match(ERROR_LINE, [line for line in lines if not CAUSE_IS_ELSEWHERE.search(line)])
    error = found.string if found else None
    tail = _tail(lines, error)
    if exit_code is not None and _is_kill(exit_code):
        message = "the engine was killed from outside (SIGKILL)"
        hint = "see who did: an operator, or the kernel for want of memory (dmesg)"
        return Failure(kind=FailureKind.KILLED, message=message, hint=hint, log_tail=tail, at=now)
    if exit_code in TERMINATED:
        message = "the engine was told to end from outside (SIGTERM)"
        hint = "see who did: an operator, or this machine's own shutdown (its system log); it is started again"
        return Failure(kind=FailureKind.KILLED, message=message, hint=hint, log_tail=tail, at=now)
    code = "unknown" if exit_code is None else str(exit_code)
    message = f"the engine ended with exit code {code}" + (f": {_short(error)}" if error else "")
    hint = "read the last lines of its log"
    return Failure(kind=FailureKind.UNKNOWN, message=message, hint=hint, log_tail=tail, at=now)


def _is_kill(exit_code: int) -> bool:
    """Docker reports 128 + signal, a child process the negative signal."""
    return exit_code in (128 + signal.SIGKILL, -signal.SIGKILL)


def _tail(lines: Sequence[str], telling: str | None) -> tuple[str, ...]:
    """The last lines; where the telling one stands before them, half of them are taken from around it."""
    last = list(lines[-TAIL_LINES:])
    if telling is not None and telling not in last:
        at = len(lines) - 1 - list(reversed(lines)).index(telling)
        half = TAIL_LINES // 2
        last = [*lines[max(0, at - half + 8) : at + 7], "[...]", *lines[-half:]]
    return tuple(line[:LINE_CHARACTERS] for line in last)


def _newest_match(pattern: re.Pattern[str], lines: Sequence[str]) -> re.Match[str] | None:
    return next((found for line in reversed(lines) if (found := pattern.search(line))), None)


def _short(line: str) -> str:
    """The telling end of a log line: without its prefix of process, level and place."""
    text = re.sub(r"^(\([^)]*\)\s*)*(ERROR|WARNING|INFO)?\s*[\d\- :.]*(\[[^\]]*\])?\s*", "", line.strip())
    text = re.sub(r"^Value error, |\s*\[type=\w+, input_.*$", "", text)  # what pydantic puts around it
    return (text or line.strip())[:300]
