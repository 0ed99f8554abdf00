"""Tiny LoRA adapters as PEFT writes them: a configuration, and small matrices in a safetensors file."""

import json
import random
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HIDDEN, LAYERS = 256, 2
"""Of the demo model that `scripts/make_demo_model` writes."""


def adapter_folder(
    folder: Path,
    *,
    rank: int = 8,
    seed: int = 1,
    hidden: int = HIDDEN,
    layers: int = LAYERS,
    strength: float = 1.0,
    **fields: Any,
) -> Path:
    """Write an adapter of the query and output projections; `fields` go into its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "demo",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "o_proj"],
        "bias": "none",
        **fields,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(layers):
        for module in ("q_proj", "o_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            shapes[f"{name}.lora_A.weight"] = rank, hidden
            shapes[f"{name}.lora_B.weight"] = hidden, rank
    write_tensors(folder / "adapter_model.safetensors", shapes, seed, strength)
    return folder


def write_tensors(path: Path, shapes: Mapping[str, tuple[int, int]], seed: int, strength: float = 1.0) -> None:
    """A safetensors file of these matrices, random and repeatable, in 32 bits."""
    source = random.Random(seed)  # noqa: S311 - repeatable, not secret
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, shape in shapes.items():
        numbers = array("f", (source.uniform(-strength, strength) for _ in range(shape[0] * shape[1])))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + 4 * len(numbers)]}
        data += numbers.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
