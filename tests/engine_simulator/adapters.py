"""LoRA adapters that come and go while the engine runs: vLLM's two routes, with its words for what it refuses.

The texts are those of vLLM 0.32 (entrypoints/openai/models/serving, lora/peft_helper), seen on its CPU build. To most
of what is wrong with an adapter it says 500, passes on its worker's error in a sentence of its own, and serves on.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from tests.engine_simulator.engine import Engine
from tests.engine_simulator.http import Connection, Request
from tests.engine_simulator.requests import RequestError, read_body

LENGTH_BYTES = 8
TEXT = b"text/plain; charset=utf-8"


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter; `seed` is another one for other weights."""

    name: str
    path: str
    seed: int


def load(engine: Engine, connection: Connection, request: Request) -> None:
    """`POST /v1/load_lora_adapter`, answered after `lora_load_seconds`."""
    body = read_body(request, "lora_name", "lora_path")
    name, path = body["lora_name"], body["lora_path"]
    if not name or not path:
        raise RequestError(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
    if name in engine.arguments.served_names:
        raise RequestError(400, f"The lora adapter '{name}' conflicts with a served base model.", "InvalidUserInput")
    if name in engine.adapters and not body.get("load_inplace"):
        raise RequestError(
            400,
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set"
            " 'load_inplace' to True.",
            "InvalidUserInput",
        )
    adapter = _read(engine, name, path)

    def loaded() -> None:
        engine.adapters[name] = adapter
        if connection.busy:
            connection.answer(f"Success: LoRA adapter '{name}' added successfully.".encode(), content_type=TEXT)

    engine.change(engine.simulation.lora_load_seconds, loaded)


def unload(engine: Engine, connection: Connection, request: Request) -> None:
    """`POST /v1/unload_lora_adapter`."""
    name = read_body(request, "lora_name")["lora_name"]
    if not name:
        raise RequestError(400, "'lora_name' needs to be provided to unload a LoRA adapter.", "InvalidUserInput")
    if name not in engine.adapters:
        raise RequestError(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
    del engine.adapters[name]
    connection.answer(f"Success: LoRA adapter '{name}' removed successfully.".encode(), content_type=TEXT)


def _read(engine: Engine, name: str, path: str) -> Adapter:
    folder = Path(path)
    if not (folder / "adapter_config.json").is_file():
        raise RequestError(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
    if not engine.arguments.enable_lora:
        raise _worker_error("LoRA is not enabled. Use --enable-lora to enable LoRA.")
    config = json.loads((folder / "adapter_config.json").read_text())
    ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
    problems = ["vLLM does not yet support DoRA."] if config.get("use_dora") else []
    if max(ranks) > engine.arguments.max_lora_rank:
        problems.append(f"LoRA rank {max(ranks)} is greater than max_lora_rank {engine.arguments.max_lora_rank}.")
    if problems:
        raise _worker_error(" ".join(problems))
    try:
        weights = (folder / "adapter_model.safetensors").read_bytes()
    except OSError:
        raise _worker_error(f"{path} doesn't contain tensors") from None
    length = int.from_bytes(weights[:LENGTH_BYTES], "little")
    header = json.loads(weights[LENGTH_BYTES : LENGTH_BYTES + length])
    ends = [entry["data_offsets"][1] for tensor, entry in header.items() if tensor != "__metadata__"]
    if len(weights) - LENGTH_BYTES - length != max(ends, default=0):
        raise _worker_error("Error while deserializing header: incomplete metadata, file not fully covered")
    return Adapter(name, path, int.from_bytes(hashlib.sha256(weights).digest()[:6]))


def _worker_error(said: str) -> RequestError:
    return RequestError(
        500,
        f"Call to add_lora method failed: Worker failed with error '{said}', please check the stack trace above for the"
        " root cause",
        "InternalServerError",
    )
