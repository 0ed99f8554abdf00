"""Why an engine died, read from its exit code and its log. Pure.

Rules are tried in order, the most telling first; each line of the log is matched from the newest back, because the last
error is nearest to the death.
"""

import re
import signal
from collections.abc import Sequence

import msgspec

from worker_manager.contract import Failure, FailureKind

TAIL_LINES = 60
"""Lines of the log that a failure carries."""
LINE_CHARACTERS = 400

PERMANENT_KINDS = frozenset(
    {
        FailureKind.REFUSED,
        FailureKind.BAD_FLAG,
        FailureKind.MODEL_MISSING,
        FailureKind.MODEL_GATED,
        FailureKind.MODEL_UNREADABLE,
        FailureKind.MODEL_UNSUPPORTED,
        FailureKind.KV_CACHE_TOO_SMALL,
    }
)
"""Failures that the same spec would meet again at once: no second try."""


class Rule(msgspec.Struct, frozen=True):
    """A pattern in the log, and what it means."""

    kind: FailureKind
    pattern: re.Pattern[str]
    message: str
    hint: str


def _rule(kind: FailureKind, pattern: str, message: str, hint: str) -> Rule:
    return Rule(kind, re.compile(pattern, re.IGNORECASE), message, hint)


RULES = (
    _rule(
        FailureKind.BAD_FLAG,
        r"unrecognized arguments|error: argument --|invalid choice:|expected one argument|ambiguous option",
        "the engine does not take one of its flags",
        "correct the endpoint's engine_args",
    ),
    _rule(
        FailureKind.KV_CACHE_TOO_SMALL,
        r"No available memory for the cache blocks|larger than the available KV cache memory|"
        r"KV cache is needed, which is larger|can be stored in KV cache",
        "too little memory is left for the KV cache",
        "lower max_model_len, or give the endpoint more GPU memory (on CPUs: raise HOSTLER_CPU_KV_CACHE_GIB)",
    ),
    _rule(
        FailureKind.OUT_OF_MEMORY_AT_LOAD,
        r"Free memory on device .* is less than desired",
        "less GPU memory was free than the engine was promised",
        "see which other programs use the GPU, or lower gpu_memory_gib",
    ),
    _rule(
        FailureKind.SHARED_MEMORY,
        r"No space left on device: '?/dev/shm|Error while creating shared memory|/dev/shm.*(too small|No space)|"
        r"unable to (open|allocate|mmap) shared memory|Bus error|insufficient shared memory",
        "the shared memory (/dev/shm) is too small",
        "raise HOSTLER_ENGINE_SHM_GIB",
    ),
    _rule(
        FailureKind.DRIVER_MISMATCH,
        r"driver version is insufficient|NVIDIA driver on your system is too old|"
        r"no kernel image is available for execution|CUDA driver version|Failed to initialize NVML|"
        r"No CUDA GPUs are available|Found no NVIDIA driver|Driver/library version mismatch|"
        r"unsatisfied condition: cuda",
        "the GPU driver and the engine's image do not fit together, or the engine sees no GPU",
        "update the NVIDIA driver, or name an older engine image in HOSTLER_ENGINE_IMAGE; "
        "after a driver update restart the machine",
    ),
    _rule(
        FailureKind.MODEL_GATED,
        r"gated repo|is gated|Access to model .* is restricted|401 Client Error",
        "the model is gated: its owner must let you in first",
        "accept its terms on the model hub, set HF_TOKEN and download it again",
    ),
    _rule(
        FailureKind.MODEL_UNREADABLE,
        r"PermissionError.*(/models|\.safetensors|\.json)|Permission denied.*(/models|\.safetensors|\.json)",
        "the engine may not read the model's files",
        "make them readable: chmod -R a+rX on the model's folder",
    ),
    _rule(
        FailureKind.MODEL_UNSUPPORTED,
        r"Model architectures .* (are|is) not supported|does not recognize this architecture|"
        r"No model architectures are specified|requires you to execute the configuration file|"
        r"trust_remote_code=True|model type `?.*`? but Transformers does not",
        "this version of the engine does not serve this kind of model",
        "take a newer engine image, or another model; models that bring their own code are not run",
    ),
    _rule(
        FailureKind.MODEL_MISSING,
        r"Cannot find any (safetensors )?model weights|does not appear to have a file named|"
        r"Repo id must be in the form|LocalEntryNotFoundError|Invalid repository ID or local directory|"
        r"Incorrect path_or_model_id|No such file or directory: '?/models|is not a local folder|"
        r"SafetensorError|couldn't connect to .*huggingface|Can't load (the )?(configuration|tokenizer)",
        "files of the model are missing or damaged",
        "check the model's folder, or download the model again",
    ),
    _rule(
        FailureKind.BAD_FLAG,
        r"validation errors? for \w*Config|User-specified max_model_len|Unknown quantization method|"
        r"must be divisible by tensor parallel size|World size .* is larger than|"
        r"(ValueError|KeyError): .*(tool[- ]call|reasoning)[- _]parser|"
        r"is not supported on (the )?current platform",
        "the model, the machine and the engine's flags do not fit together",
        "the log's last lines name the value; correct the endpoint's engine_args or max_model_len",
    ),
    _rule(
        FailureKind.OUT_OF_MEMORY_AT_LOAD,
        r"out of memory|OutOfMemoryError|MemoryError|DefaultCPUAllocator: can't allocate|Cannot allocate memory",
        "the memory did not suffice to load the model",
        "give the endpoint more GPU memory or more GPUs, or lower max_model_len",
    ),
)

CAUSE_IS_ELSEWHERE = re.compile(r"See root cause above|check the stack trace above|^\s+(raise|return) |\braise \w+\(")
"""Lines at the end of vLLM's log that only point upward."""
ERROR_LINE = re.compile(r"\b(\w*(Error|Exception))\b|\bERROR\b|\bFATAL\b|\bfatal\b|\berror:", re.ASCII)
AT_RUN = {FailureKind.OUT_OF_MEMORY_AT_LOAD: FailureKind.OUT_OF_MEMORY_AT_RUN}


def diagnose(
    *, exit_code: int | None, out_of_memory: bool, lines: Sequence[str], was_ready: bool, now: float
) -> Failure:
    """The failure in words. `was_ready`: it had served before it died; `now`: Unix time, seconds."""
    tail = _tail(lines, None)
    if out_of_memory:
        kind = FailureKind.OUT_OF_MEMORY_AT_RUN if was_ready else FailureKind.OUT_OF_MEMORY_AT_LOAD
        message = "the kernel ended the engine: it used more main memory than its limit"
        return Failure(kind=kind, message=message, hint="raise HOSTLER_ENGINE_MEMORY_GIB", log_tail=tail, at=now)
    for rule in RULES:
        if found := _newest_match(rule.pattern, lines):
            kind = AT_RUN.get(rule.kind, rule.kind) if was_ready else rule.kind
            message = f"{rule.message}: {_short(found)}"
            return Failure(kind=kind, message=message, hint=rule.hint, log_tail=_tail(lines, found), at=now)
    return _undiagnosed(exit_code, lines, now)


def _undiagnosed(exit_code: int | None, lines: Sequence[str], now: float) -> Failure:
    """No rule fits: say which signal, or show the last error line that names a cause."""
    error = _newest_match(ERROR_LINE, [line for line in lines if not CAUSE_IS_ELSEWHERE.search(line)])
    tail = _tail(lines, error)
    if exit_code is not None and _is_kill(exit_code):
        message = "the engine was killed from outside (SIGKILL)"
        hint = "see who did: an operator, or the kernel for want of memory (dmesg)"
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


def _newest_match(pattern: re.Pattern[str], lines: Sequence[str]) -> str | None:
    return next((line for line in reversed(lines) if pattern.search(line)), None)


def _short(line: str) -> str:
    """The telling end of a log line: without its prefix of process, level and place."""
    text = re.sub(r"^(\([^)]*\)\s*)*(ERROR|WARNING|INFO)?\s*[\d\- :.]*(\[[^\]]*\])?\s*", "", line.strip())
    return (text or line.strip())[:300]
