"""The files of a LoRA adapter: what its configuration and the header of its weights say."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from gateway.endpoints.types import AdapterFacts
from gateway.errors import BadRequest
from gateway.memory.weights import LENGTH_BYTES, HeaderError, Tensor, header_length, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CONFIG_LIMIT = 1024 * 1024
"""Bytes; a larger adapter_config.json is not one."""
LAYER = re.compile(
    r"(?:^|\.)layers\.(?P<layer>\d+)\.(?:self_attn|mlp)\.(?P<module>q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    r"\.lora_(?P<side>[AB])\.weight$"
)
OTHER_STACKS = re.compile(r"visual|vision|audio|encoder|mtp")
"""Layers that are not those of the text model, whose widths are others."""
INTO = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
"""Modules that read the hidden state; the others of LAYER write it."""
PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""Ways to begin a training that leave a plain adapter (vLLM 0.32, lora/peft_helper)."""


def read_adapter(path: str, folder: Path, revision: str) -> AdapterFacts:
    """The facts of the adapter in `folder`, which users know as `path`. Raises BadRequest; OSError."""
    config = _config(path, folder)
    rank = _rank(path, config)
    try:
        with (folder / WEIGHTS).open("rb") as file:
            tensors = read_header(file.read(header_length(file.read(LENGTH_BYTES))))
    except HeaderError as problem:
        raise _refusal(path, f"has a {WEIGHTS} that cannot be read ({problem})") from None
    if not tensors:
        raise _refusal(path, f"has a {WEIGHTS} with nothing in it")
    width, depth = _text_model(tensors)
    return AdapterFacts(
        path=path,
        revision=revision,
        rank=rank,
        size_bytes=sum(tensor.size for tensor in tensors),
        unsupported=_unsupported(config),
        hidden_size=width,
        layers=depth,
        base_model=config["base_model_name_or_path"] if isinstance(config.get("base_model_name_or_path"), str) else "",
    )


def _refusal(path: str, what: str) -> BadRequest:
    return BadRequest(f"The adapter '{path}' {what}", param="adapters")


def _config(path: str, folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        if file.stat().st_size > CONFIG_LIMIT:
            raise ValueError("too large")
        config = json.loads(file.read_bytes())
        if not isinstance(config, dict):
            raise TypeError("not an object")
    except (ValueError, TypeError, RecursionError) as problem:
        raise _refusal(path, f"has an {CONFIG} that cannot be read ({problem})") from None
    if config.get("peft_type", "LORA") != "LORA":
        raise _refusal(path, f"is of the kind {config['peft_type']!r}: engines take LORA only")
    return config


def _rank(path: str, config: dict[str, Any]) -> int:
    """The highest rank of any of its modules, as vLLM counts it."""
    patterns = config.get("rank_pattern") or {}
    found = [config.get("r"), *(patterns.values() if isinstance(patterns, dict) else ())]
    ranks = [rank for rank in found if type(rank) is int and rank > 0]
    if len(ranks) < len(found):
        raise _refusal(path, f"has an {CONFIG} without a usable rank 'r'")
    return max(ranks)


def _unsupported(config: dict[str, Any]) -> str:
    """Why vLLM would not load it, as far as its configuration tells (lora/peft_helper, `validate_legal`)."""
    told = {
        "it is a DoRA adapter": config.get("use_dora"),
        "it has biases": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "it is an activated LoRA (aLoRA)": config.get("alora_invocation_tokens"),
        "it replicates layers": config.get("layer_replication"),
        "it is a QALoRA adapter": config.get("use_qalora"),
        "it is a block-diagonal LoRA": config.get("use_bdlora"),
    }
    saved = config.get("modules_to_save") or []
    others = [str(name) for name in saved if name not in ("classifier", "score")] if isinstance(saved, list) else []
    if others:
        told[f"it replaces whole modules ({', '.join(others)})"] = True
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        told[f"its init_lora_weights {init!r} changes the base model's own weights"] = True
    return ", ".join(words for words, is_so in told.items() if is_so)


def _text_model(tensors: list[Tensor]) -> tuple[int | None, int]:
    """The hidden size of the text model it was made for, and the number of layers it needs; None, 0: it does not tell.

    The matrix A of a module that reads the hidden state is `[rank, hidden]`, B of one that writes it `[hidden, rank]`.
    """
    widths: set[int] = set()
    depth = 0
    for tensor in tensors:
        found = LAYER.search(tensor.name)
        if found is None or OTHER_STACKS.search(tensor.name) or len(tensor.shape) != 2:  # noqa: PLR2004 - a matrix
            continue
        depth = max(depth, int(found["layer"]) + 1)
        if (found["module"] in INTO) == (found["side"] == "A"):
            widths.add(tensor.shape[1] if found["side"] == "A" else tensor.shape[0])
    return (widths.pop(), depth) if len(widths) == 1 else (None, depth)


def adapter_revision(path: str, folder: Path) -> str:
    """Another one whenever the files are others; a hub adapter's folder is named by its commit. Raises BadRequest."""
    for name, why in (
        (CONFIG, "so it is no LoRA adapter as PEFT writes them"),
        (WEIGHTS, "and no other form is taken"),
    ):
        if not (folder / name).is_file():
            raise _refusal(path, f"has no {name}, {why}")
    if path.startswith("hub/"):
        return path.rpartition("/")[2]
    stamps = [(name, (folder / name).stat()) for name in (CONFIG, WEIGHTS)]
    text = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stamps])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
