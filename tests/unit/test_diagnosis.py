import pytest

from worker_manager.contract import Failure, FailureKind
from worker_manager.engines.diagnosis import LINE_CHARACTERS, TAIL_LINES, diagnose

EXAMPLES = [
    ("vllm: error: unrecognized arguments: --no-such-flag", FailureKind.BAD_FLAG),
    ("vllm serve: error: argument --dtype: invalid choice: 'x'", FailureKind.BAD_FLAG),
    (
        (
            "(EngineCore pid=26) ERROR 11-23 12:29:31 [core.py:946] "
            "ValueError: No available memory for the cache blocks. "
            "Try increasing `gpu_memory_utilization` when initializing the engine."
        ),
        FailureKind.KV_CACHE_TOO_SMALL,
    ),
    (
        (
            "ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (1.00 GiB)."
        ),
        FailureKind.KV_CACHE_TOO_SMALL,
    ),
    (
        (
            "ValueError: Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 71.2 GiB)."
        ),
        FailureKind.OUT_OF_MEMORY_AT_LOAD,
    ),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", FailureKind.OUT_OF_MEMORY_AT_LOAD),
    ("OSError: You are trying to access a gated repo.", FailureKind.MODEL_GATED),
    (
        "ValueError: Model architectures ['FooForCausalLM'] are not supported for now. Supported architectures: ...",
        FailureKind.MODEL_UNSUPPORTED,
    ),
    ("RuntimeError: Cannot find any model weights with `/models/local/x`", FailureKind.MODEL_MISSING),
    ("OSError: /models/local/x does not appear to have a file named config.json.", FailureKind.MODEL_MISSING),
    (
        "PermissionError: [Errno 13] Permission denied: '/models/local/x/model.safetensors'",
        FailureKind.MODEL_UNREADABLE,
    ),
    (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
        FailureKind.DRIVER_MISMATCH,
    ),
    ("RuntimeError: No CUDA GPUs are available", FailureKind.DRIVER_MISMATCH),
    ("OSError: [Errno 28] No space left on device: '/dev/shm/psm_1'", FailureKind.SHARED_MEMORY),
    (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
        FailureKind.BAD_FLAG,
    ),
]


def read(*lines: str, exit_code: int | None = 1, out_of_memory: bool = False, was_ready: bool = False) -> Failure:
    return diagnose(exit_code=exit_code, out_of_memory=out_of_memory, lines=lines, was_ready=was_ready, now=5.0)


@pytest.mark.parametrize(("line", "kind"), EXAMPLES)
def test_a_known_line_is_understood_wherever_it_stands(line: str, kind: FailureKind) -> None:
    failure = read("INFO starting", line, "Engine core initialization failed. See root cause above.", "")
    assert failure.kind is kind
    assert failure.message
    assert failure.hint
    assert failure.at == 5.0


def test_running_out_of_gpu_memory_after_it_had_served_is_told_apart() -> None:
    assert read("torch.OutOfMemoryError: CUDA out of memory.", was_ready=True).kind is FailureKind.OUT_OF_MEMORY_AT_RUN


def test_the_kernels_verdict_comes_before_the_log() -> None:
    assert read("unrecognized arguments", out_of_memory=True).kind is FailureKind.OUT_OF_MEMORY_AT_LOAD
    assert read(out_of_memory=True, was_ready=True).kind is FailureKind.OUT_OF_MEMORY_AT_RUN


@pytest.mark.parametrize("exit_code", [137, -9])
def test_a_kill_from_outside_is_named(exit_code: int) -> None:
    assert read("INFO all well", exit_code=exit_code).kind is FailureKind.KILLED


def test_what_is_not_understood_shows_the_last_error_line() -> None:
    failure = read("ERROR first", "RuntimeError: the last of all", "INFO goodbye", exit_code=3)
    assert failure.kind is FailureKind.UNKNOWN
    assert "exit code 3" in failure.message
    assert "the last of all" in failure.message


def test_nothing_known_is_still_a_sentence() -> None:
    failure = read(exit_code=None)
    assert (failure.kind, failure.log_tail) == (FailureKind.UNKNOWN, ())
    assert "unknown" in failure.message


def test_the_tail_is_bounded() -> None:
    failure = read(*("x" * 10_000 for _ in range(1000)))
    assert len(failure.log_tail) == TAIL_LINES
    assert max(map(len, failure.log_tail)) == LINE_CHARACTERS


def test_lines_that_only_point_upward_are_not_taken_for_the_cause() -> None:
    traceback = [f"  File {number}" for number in range(100)]
    failure = read(
        "fatal error: Python.h: No such file or directory", *traceback, "RuntimeError: See root cause above."
    )
    assert "Python.h" in failure.message
    assert any("Python.h" in line for line in failure.log_tail)
    assert failure.log_tail[-1] == "RuntimeError: See root cause above."
    assert len(failure.log_tail) <= TAIL_LINES
