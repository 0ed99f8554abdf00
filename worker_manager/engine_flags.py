"""The engine flags that an endpoint may set: a part of the contract, as the gateway refuses all others. Pure."""

FlagValue = str | int | float | bool

FLAG_TEXT_MAX = 4096
"""Most characters of an engine flag's text."""

_INT, _FLOAT, _TEXT, _FLAG = "integer", "number", "text", "flag"

ENGINE_FLAGS: dict[str, str] = {
    "async-scheduling": _FLAG,
    "block-size": _INT,
    "chat-template-content-format": _TEXT,
    "cpu-offload-gb": _FLOAT,
    "data-parallel-size": _INT,
    "default-chat-template-kwargs": _TEXT,
    "disable-custom-all-reduce": _FLAG,
    "disable-sliding-window": _FLAG,
    "dtype": _TEXT,
    "enable-auto-tool-choice": _FLAG,
    "enable-chunked-prefill": _FLAG,
    "enable-expert-parallel": _FLAG,
    "enable-prefix-caching": _FLAG,
    "enable-prompt-tokens-details": _FLAG,
    "enforce-eager": _FLAG,
    "generation-config": _TEXT,
    "hf-overrides": _TEXT,
    "kv-cache-dtype": _TEXT,
    "kv-cache-memory-bytes": _INT,
    "limit-mm-per-prompt": _TEXT,
    "load-format": _TEXT,
    "max-logprobs": _INT,
    "max-num-batched-tokens": _INT,
    "max-num-seqs": _INT,
    "mm-processor-kwargs": _TEXT,
    "model-impl": _TEXT,
    "override-generation-config": _TEXT,
    "pipeline-parallel-size": _INT,
    "pooler-config": _TEXT,
    "quantization": _TEXT,
    "reasoning-parser": _TEXT,
    "runner": _TEXT,
    "convert": _TEXT,
    "safetensors-load-strategy": _TEXT,
    "scheduling-policy": _TEXT,
    "seed": _INT,
    "speculative-config": _TEXT,
    "stream-interval": _INT,
    "tensor-parallel-size": _INT,
    "tokenizer-mode": _TEXT,
    "tool-call-parser": _TEXT,
}
"""The engine flags an endpoint may set, with the kind of value each takes.

Absent on purpose: whatever Hostler sets itself (names, sockets, lengths, memory), whatever loads code or files of the
caller's choice (`trust-remote-code`, `tool-parser-plugin`, `middleware`, `chat-template` as a path, `download-dir`),
and whatever opens a port or a key.
"""


def flag_problem(name: str, value: FlagValue) -> str | None:
    """Why this engine flag can't be set, as a sentence; None if it can."""
    kind = ENGINE_FLAGS.get(name)
    if kind is None:
        return f"engine flag {name!r} is not one that an endpoint may set"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {
        _FLAG: isinstance(value, bool),
        _INT: isinstance(value, int) and not isinstance(value, bool),
        _FLOAT: is_number,
        _TEXT: isinstance(value, str) and "\x00" not in value and len(value) <= FLAG_TEXT_MAX,
    }[kind]
    return None if fits else f"engine flag {name!r} takes a {kind}, not {value!r}"
