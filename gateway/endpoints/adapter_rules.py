"""The rules for an endpoint's LoRA adapters, and the room its engines are started with for them. Pure."""

from collections.abc import Mapping

import msgspec

from gateway.endpoints.types import AdapterFacts, EndpointSpec, ModelFacts
from gateway.errors import BadRequest
from gateway.memory.config import ModelShape
from worker_manager.contract import LoraRoom

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` takes."""
KEPT_STEP = 16
ADAPTERS_MOST = 1024
"""Of one endpoint: as many as an engine may be told to keep in host memory."""

Found = Mapping[str, AdapterFacts | None]
"""Adapters by name; None: not downloaded yet."""


def settle_room(spec: EndpointSpec, found: Found, *, fixed: bool) -> EndpointSpec:
    """An endpoint with adapters gets room for them where it has none, and more where it has too little.

    `fixed`: the room was asked for in so many words; what does not fit in is refused. Raises BadRequest.
    """
    if spec.lora is not None and spec.lora.max_cpu_loras < spec.lora.max_loras:
        raise BadRequest(
            f"lora.max_cpu_loras ({spec.lora.max_cpu_loras}) is less than lora.max_loras ({spec.lora.max_loras}): "
            "at least as many adapters are kept in host memory as there are slots",
            param="lora",
        )
    if not spec.adapters:
        return spec
    if len(spec.adapters) > ADAPTERS_MOST:
        raise BadRequest(f"An endpoint may have {ADAPTERS_MOST} adapters, not {len(spec.adapters)}", param="adapters")
    highest = max((facts.rank for facts in found.values() if facts is not None), default=1)
    if highest > RANKS[-1]:
        raise BadRequest(f"An adapter of rank {highest} is above what engines take ({RANKS[-1]})", param="adapters")
    if spec.lora is not None and fixed:
        _require_room(spec.lora, found, len(spec.adapters))
        return spec
    room = _grown(spec.lora, highest, len(spec.adapters))
    return spec if room == spec.lora else msgspec.structs.replace(spec, lora=room)


def _grown(room: LoraRoom | None, rank: int, count: int) -> LoraRoom:
    """No smaller than before, so that taking an adapter away starts nothing anew.

    The first adapter gets more room than it needs, so that the second one does not either.
    """
    room = room or LoraRoom()
    if rank > room.max_rank:
        # converted, as the type of its ranks is a closed list
        room = msgspec.convert(
            msgspec.to_builtins(room) | {"max_rank": next(one for one in RANKS if one >= rank)}, LoraRoom
        )
    if count > room.max_cpu_loras:
        room = msgspec.structs.replace(room, max_cpu_loras=-(-count // KEPT_STEP) * KEPT_STEP)
    return room


def _require_room(room: LoraRoom, found: Found, count: int) -> None:
    for name, facts in found.items():
        if facts is not None and facts.rank > room.max_rank:
            raise BadRequest(
                f"The adapter '{name}' has rank {facts.rank} and lora.max_rank is {room.max_rank}: set it to "
                f"{next(one for one in RANKS if one >= facts.rank)}, or leave lora out",
                param="lora",
            )
    if count > room.max_cpu_loras:
        raise BadRequest(
            f"{count} adapters were asked for and lora.max_cpu_loras is {room.max_cpu_loras}: raise it, or leave lora "
            "out",
            param="lora",
        )


def check_adapters(spec: EndpointSpec, found: Found, model: ModelFacts | None) -> None:
    """Raise BadRequest for the first adapter that engines of this endpoint would not load."""
    for name, facts in found.items():
        if facts is not None and (why := misfit(facts, spec, model)):
            raise BadRequest(
                f"The adapter '{name}' ({spec.adapters[name].model}) does not fit: {why}", param="adapters"
            )


def misfit(facts: AdapterFacts, spec: EndpointSpec, model: ModelFacts | None) -> str:
    """Why engines of this endpoint can't serve the adapter, as a sentence; empty if nothing is known."""
    if facts.unsupported:
        return f"vLLM does not load it ({facts.unsupported})"
    if spec.lora is None:
        return "workers of this endpoint are started without room for adapters (lora)"
    if facts.rank > spec.lora.max_rank:
        return f"its rank is {facts.rank} and lora.max_rank is {spec.lora.max_rank}: raise that with a PATCH"
    return _of_another_model(facts, spec.model, model.shape) if model is not None and model.shape is not None else ""


def _of_another_model(facts: AdapterFacts, model: str, shape: ModelShape) -> str:
    """The engine itself takes an adapter of a narrower or deeper model without a word, and answers nonsense with it."""
    made_for = f" (it was made for '{facts.base_model}')" if facts.base_model else ""
    if facts.hidden_size is not None and facts.hidden_size != shape.hidden_size:
        return (
            f"it is for a model of hidden size {facts.hidden_size}, and that of '{model}' is "
            f"{shape.hidden_size}{made_for}"
        )
    if facts.layers > shape.depth:
        return f"it changes {facts.layers} layers, and '{model}' has {shape.depth}{made_for}"
    return ""
