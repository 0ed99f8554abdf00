"""What engines say when they die, and what that means: a table of patterns, tried in order. Pure.

The words are those of vLLM 0.32, PyTorch, Transformers and NCCL. tests/data/engine_logs holds logs of each kind, and
docs/failure-modes.md the kinds for whoever runs the house; tests hold the three together.
"""

import re
from collections.abc import Sequence

import msgspec

from worker_manager.contract import FailureKind

PERMANENT_KINDS = frozenset(
    {
        FailureKind.REFUSED,
        FailureKind.BAD_FLAG,
        FailureKind.MODEL_MISSING,
        FailureKind.MODEL_GATED,
        FailureKind.MODEL_UNREADABLE,
        FailureKind.MODEL_UNSUPPORTED,
        FailureKind.KV_CACHE_TOO_SMALL,
        FailureKind.OFFLINE,
    }
)
"""Failures that the same spec would meet again at once: no second try."""


class Rule(msgspec.Struct, frozen=True):
    """A pattern in one line of the log, and what it means. `hint` may name groups of the pattern in braces."""

    kind: FailureKind
    pattern: re.Pattern[str]
    message: str
    hint: str


def _rule(kind: FailureKind, pattern: str, message: str, hint: str) -> Rule:
    return Rule(kind, re.compile(pattern, re.IGNORECASE), message, hint)


_MODEL_FILES = r"(/models/|\.safetensors|\.bin\b|config\.json|tokenizer)"
_MORE_MEMORY = "give it more memory with gpu_memory_gib or gpus (on CPUs: raise HOSTLER_CPU_KV_CACHE_GIB)"

FLAGS = (
    _rule(
        FailureKind.BAD_FLAG,
        r"unrecognized arguments",
        "the engine has no such flag",
        "take it out of the endpoint's engine_args, or name another engine image",
    ),
    _rule(
        FailureKind.BAD_FLAG,
        r"error: argument (-\w/)?--(?P<flag>[\w.-]+)[^:]*: ",
        "the engine does not take this value of a flag",
        "correct {flag} in the endpoint's engine_args",
    ),
    _rule(
        FailureKind.BAD_FLAG,
        r"invalid (?P<kind>tool call|reasoning) parser|requires --(?P<flag>tool-call-parser)|"
        r"(ValueError|KeyError): .*(tool[- ]call|reasoning)[- _]parser",
        "the engine does not know this parser of tool calls or of reasoning, or misses one",
        "correct tool-call-parser and reasoning-parser in the endpoint's engine_args",
    ),
    _rule(
        FailureKind.BAD_FLAG,
        r"User-specified max_model_len|max_model_len \(\d+\) is greater than",
        "max_model_len is above what the model was made for",
        "lower the endpoint's max_model_len, or leave it out",
    ),
    _rule(
        FailureKind.BAD_FLAG,
        r"must be divisible by tensor parallel size|(not divisible|indivisible) by .*(tensor|tp)|"
        r"World size .* is larger than|world_size .* is (greater|larger)|Not enough allowed NUMA nodes",
        "the model can't be split over so many GPUs, or there are not so many",
        "correct the endpoint's gpus, or tensor-parallel-size in its engine_args",
    ),
    _rule(
        FailureKind.BAD_FLAG,
        r"is not supported for quantization method",
        "the model's quantization does not work with this dtype",
        "set dtype in the endpoint's engine_args to one that the message names",
    ),
    _rule(
        FailureKind.BAD_FLAG,
        r"does not match the quantization method specified in the `quantization` argument",
        "the weights are quantized in another way than engine_args says",
        "take quantization out of the endpoint's engine_args: the engine reads it from the model",
    ),
)

MEMORY = (
    _rule(
        FailureKind.KV_CACHE_TOO_SMALL,
        r"estimated maximum model length is (?P<tokens>\d+)",
        "one request of full length does not fit into the KV cache",
        f"set the endpoint's max_model_len to {{tokens}} or less, or {_MORE_MEMORY}",
    ),
    _rule(
        FailureKind.KV_CACHE_TOO_SMALL,
        r"No available memory for the cache blocks|larger than the available KV cache memory|"
        r"KV cache is needed, which is larger|can be stored in KV cache",
        "too little memory is left for the KV cache",
        f"lower the endpoint's max_model_len, or {_MORE_MEMORY}",
    ),
    _rule(
        FailureKind.OUT_OF_MEMORY_AT_LOAD,
        r"Available memory on node .* is less than requested memory",
        "the engine's main memory does not hold its KV cache beside everything else",
        "lower HOSTLER_CPU_KV_CACHE_GIB, or raise HOSTLER_ENGINE_MEMORY_GIB if the machine has more",
    ),
    _rule(
        FailureKind.OUT_OF_MEMORY_AT_LOAD,
        r"Free memory on device .* is less than",
        "less GPU memory was free than the engine was promised",
        "see in GET /api/host which other programs use the GPU, or lower the endpoint's gpu_memory_gib",
    ),
    _rule(
        FailureKind.SHARED_MEMORY,
        r"No space left on device: '?/dev/shm|Insufficient space in /dev/shm|Error while creating shared memory|"
        r"/dev/shm.*(too small|No space)|"
        r"unable to (open|allocate|mmap|resize|write to) .*shared memory|Bus error|insufficient shared memory|"
        r"No space left on device.*\b(shm|psm_)",
        "the shared memory (/dev/shm) is too small",
        "raise HOSTLER_ENGINE_SHM_GIB",
    ),
)

MACHINE = (
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
        FailureKind.DISK_FULL,
        r"No space left on device|Disk quota exceeded",
        "a disk that the engine writes to is full",
        "free space below HOSTLER_CACHE, where the engines' compile caches are; deleted caches are made anew",
    ),
    _rule(
        FailureKind.LAUNCH_FAILED,
        # a socket's bind tells no path
        r"Address already in use|\[Errno (13|30)\] (Permission denied|Read-only file system)$|"
        r"(Permission denied|Read-only file system).*\.sock\b",
        "the engine could not make its socket",
        "see who may write to the engines folder below HOSTLER_RUN, and what lies there; it is tried again",
    ),
    _rule(
        FailureKind.LAUNCH_FAILED,
        r"Resource temporarily unavailable|can't start new thread",
        "the engine may start no further process or thread",
        "raise HOSTLER_ENGINE_PIDS, or the limit of processes where it runs without Docker (ulimit -u)",
    ),
)

MODEL = (
    _rule(
        FailureKind.MODEL_GATED,
        r"gated repo|is gated|Access to model .* is restricted|401 Client Error",
        "the model is gated: its owner must let you in first",
        "accept its terms on the model hub, set HF_TOKEN and download it again",
    ),
    _rule(
        FailureKind.MODEL_UNREADABLE,
        rf"(PermissionError|Permission denied|os error 13).*{_MODEL_FILES}|{_MODEL_FILES}.*Permission denied",
        "the engine may not read the model's files",
        "make them readable: chmod -R a+rX on the model's folder",
    ),
    _rule(
        FailureKind.MODEL_UNSUPPORTED,
        r"Model architectures .* (are|is) not supported|does not recognize this architecture|"
        r"No model architectures are specified|requires you to execute the configuration file|"
        r"trust_remote_code=True|model type `?.*`? but Transformers does not|contains custom code which must be",
        "this version of the engine does not serve this kind of model",
        "take a newer engine image, or another model; models that bring their own code are not run",
    ),
    _rule(
        FailureKind.MODEL_UNSUPPORTED,
        r"Unknown quantization method|quantization is currently not supported|"
        r"quantization method \S+ is not supported for the current GPU|"
        r"Quantization method .* is not supported|quantization .*not supported on|"
        r"Failed to find a kernel that can implement|Kernel requires .* support",
        "this engine, or this machine, does not serve weights of this quantization",
        "take the model in another quantization, or a newer engine image; "
        "where engine_args sets quantization, take it out",
    ),
    _rule(
        FailureKind.MODEL_UNSUPPORTED,
        r"InvalidCxxCompiler|No working C\+\+ compiler|Python\.h: No such file",
        "the engine's image can't compile the model: it has no C++ compiler, or lacks Python's headers",
        "set enforce-eager to true in the endpoint's engine_args, or name another engine image",
    ),
    _rule(
        FailureKind.MODEL_MISSING,
        r"SafetensorError|JSONDecodeError|not a valid JSON|Unable to load weights from|header too large|"
        r"Error while deserializing|EOF while parsing|expected value at line",
        "a file of the model is damaged: it broke off, or holds something else",
        "download the model again, or copy the file anew (after git clone: git lfs pull)",
    ),
    _rule(
        FailureKind.MODEL_MISSING,
        r"weights were not initialized from checkpoint|Attempted to load weight|There is no module or parameter named|"
        r"shape mismatch|size mismatch for|invalid shape|exceeds dimension size",
        "the weights are not those that the model's config describes",
        "download the whole model again: config.json and weights are of different models or revisions",
    ),
    _rule(
        FailureKind.OFFLINE,
        r"local directory specified: '(?!/)|LocalEntryNotFoundError|OfflineModeIsEnabled|"
        r"couldn't connect to .*huggingface|outgoing traffic has been disabled|offline mode is enabled",
        "the engine wants a model from the hub, and engines have no network",
        "name no model of the hub in the endpoint's engine_args (speculative-config, hf-overrides)",
    ),
    _rule(
        FailureKind.MODEL_MISSING,
        r"Cannot find any (safetensors )?model weights|does not appear to have a file named|"
        r"Repo id must be in the form|Invalid repository ID or local directory|"
        r"Incorrect path_or_model_id|No such file or directory:? .*/models|is not a local folder|"
        r"Can't load (the )?(configuration|tokenizer|config)|Couldn't instantiate the backend tokenizer|"
        r"files referenced in index but missing",
        "files of the model are missing, or the engine may not read them",
        "check the model's folder and its permissions (chmod -R a+rX), or download the model again: it fetches only "
        "what is missing",
    ),
)

REST = (
    _rule(
        FailureKind.BAD_FLAG,
        r"Value error, |Input should be |validation errors? for \w*Config|is not supported on (the )?current platform|"
        r"not supported (by|on) (the )?CPU backend|error: argument|invalid choice:|"
        r"expected one argument|ambiguous option",
        "the model, the machine and the engine's flags do not fit together",
        "correct the endpoint's engine_args or max_model_len: the message names the value",
    ),
    _rule(
        FailureKind.OUT_OF_MEMORY_AT_LOAD,
        r"out of memory|OutOfMemoryError|MemoryError|DefaultCPUAllocator: can't allocate|Cannot allocate memory|"
        r"died unexpectedly.*exit code: -9\b",
        "the memory did not suffice",
        "give the endpoint more memory with gpu_memory_gib or gpus, or lower its max_model_len "
        "(main memory: HOSTLER_ENGINE_MEMORY_GIB)",
    ),
)

RULES = FLAGS + MEMORY + MACHINE + MODEL + REST

LENGTH_THAT_FITS = re.compile(r"estimated maximum model length is (\d+)")


def length_that_fits(lines: Sequence[str]) -> int | None:
    """The longest context, tokens, that the engine says would fit into its KV cache; None if it does not say."""
    found = next((found for line in reversed(lines) if (found := LENGTH_THAT_FITS.search(line))), None)
    return int(found[1]) if found else None
