"""How an endpoint's workers are sized: how many GPUs, how long a context, how much memory of each card.

    size(wish, model, rooms, …) -> Sizing, or Unfit with the arithmetic

1. GPUs: what the endpoint says, else the smallest number that its model can be cut into and that holds it.
2. Length: what the endpoint says, else the model's own; where that does not fit, the longest that leaves a tenth of the
   cache's room free, so that a card on which another program holds a little still does.
3. Memory: at least weights, slots for LoRA adapters, the engine's own needs and one request of that length; at most,
   where there is room, a cache for `per_worker` requests of usual length. What is left of a card is for other workers.
"""

from collections.abc import Callable, Iterator, Mapping

import msgspec

from gateway.memory.config import ModelShape
from gateway.memory.estimate import MIB, Measured, Needs, kv_mib, longest_mib, needs
from gateway.memory.serving import Serving, parallel_gpus, serving_of
from gateway.memory.weights import Weights
from worker_manager.contract import LoraRoom
from worker_manager.engine_flags import FlagValue

USUAL_TOKENS = 4096
"""Tokens of a request, prompt and answer, that the larger cache is sized for."""
USEFUL_TOKENS = 8192
"""A context shorter than this, where the model could do more, is a reason to take another GPU."""
LEAST_TOKENS = 1024
"""A context is never cut below this."""
LENGTH_STEP = 256
ROOM_PARTS = 10
VOCABULARY_MULTIPLE = 64
"""vLLM pads the vocabulary to a multiple of this before it cuts it."""
GPUS_SUGGESTED = 16
LEAN_SEQUENCES = 32
"""Requests of one step, for an engine that must do with little memory."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint says of its size; None: not said."""

    gpus: int | None = None
    gpu_memory_mib: int | None = None
    max_model_len: int | None = None
    per_worker: int = 32
    args: Mapping[str, FlagValue] = {}
    lora: LoraRoom | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What its files say."""

    weights: Weights
    shape: ModelShape


class Sizing(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's size; MiB on each of its GPUs."""

    gpus: int
    max_model_len: int
    is_cut: bool
    """The length is shorter than the model's own, and was chosen here."""
    least_mib: int
    most_mib: int
    weights_mib: int
    kv_cache_mib: int
    """For one request of full length."""
    activations_mib: int
    graphs_mib: int
    other_mib: int
    lora_mib: int
    is_learned: bool


class Unfit(msgspec.Struct, frozen=True):
    """Why no size fits: the arithmetic, and what would."""

    reason: str
    advice: str
    param: str = "model"


Learned = Callable[[int], Measured | None]
"""What was measured with so many GPUs."""


def size(wish: Wish, model: Model, rooms: tuple[int, ...], largest_mib: int, learned: Learned) -> Sizing | Unfit:
    """Size a worker. `rooms`: MiB that may be promised on each card, the largest first; `largest_mib`: all it has."""
    impossible = _impossible(wish, len(rooms))
    if impossible is not None:
        return impossible
    last: Unfit | None = None
    cramped: Sizing | None = None
    for gpus in _counts(wish, model.shape, len(rooms)):
        tried = _try(wish, model, gpus, rooms, largest_mib, learned)
        if isinstance(tried, Unfit):
            last = tried
        elif tried.is_cut and tried.max_model_len < USEFUL_TOKENS and wish.gpus is None:
            cramped = tried  # the more GPUs the longer: keep the last of these
        else:
            return tried
    return cramped or last or _indivisible(wish, model.shape, len(rooms))


def _impossible(wish: Wish, cards: int) -> Unfit | None:
    """Numbers of GPUs that contradict each other, or the machine."""
    parallel = parallel_gpus(wish.args)
    if parallel is not None and wish.gpus is not None and parallel != wish.gpus:
        return Unfit(
            f"engine_args make {parallel} GPUs of one worker (tensor, pipeline, data parallel), gpus is {wish.gpus}",
            "Leave one of them out, or make them agree",
            "engine_args",
        )
    asked = wish.gpus or parallel or 1
    if asked > cards:
        has = f"{cards} GPU{'s' if cards != 1 else ''}"
        return Unfit(f"A worker needs {asked} GPUs and this machine has {has}", f"Set gpus to at most {cards}", "gpus")
    return None


def divides(shape: ModelShape, parts: int) -> bool:
    """Whether vLLM can cut the model into so many parts.

    Attention heads must divide (config/model, `verify_with_parallel_config`); KV heads divide or are repeated evenly
    (`QKVParallelLinear`); the padded vocabulary divides; inner widths divide, in whole quantisation blocks.
    """
    if shape.attention_heads % parts or (shape.kv_heads % parts and parts % shape.kv_heads):
        return False
    vocabulary = -(-shape.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if vocabulary % parts:
        return False
    inner = shape.expert_size or shape.intermediate_size
    return inner % parts == 0 and (shape.quant_block == 1 or inner // parts % min(shape.quant_block, inner) == 0)


def _counts(wish: Wish, shape: ModelShape, cards: int) -> Iterator[int]:
    """Numbers of GPUs to try, the smallest first."""
    asked = wish.gpus or parallel_gpus(wish.args)
    if asked is not None:
        if asked <= cards and divides(shape, serving_of(wish.args, asked, 0).tensor_parallel):
            yield asked
        return
    yield from (count for count in range(1, cards + 1) if divides(shape, count))


def _try(
    wish: Wish, model: Model, gpus: int, rooms: tuple[int, ...], largest_mib: int, learned: Learned
) -> Sizing | Unfit:
    room = min(rooms[gpus - 1], wish.gpu_memory_mib or rooms[gpus - 1])
    if wish.gpu_memory_mib is not None and wish.gpu_memory_mib > room:
        return Unfit(
            f"gpu_memory_gib promises {wish.gpu_memory_mib} MiB on each of {gpus} GPU(s), and at most {room} can be",
            "Ask for less",
            "gpu_memory_gib",
        )
    serving = serving_of(wish.args, gpus, largest_mib)
    need = needs(model.weights, model.shape, serving, learned(gpus), wish.lora)
    length, is_cut = _length(wish, model.shape, serving, need, room)
    cache = kv_mib(model.shape, serving, need, length)
    if serving.kv_cache_bytes is not None:
        given = -(-serving.kv_cache_bytes // MIB)
        if given < cache:
            return _cache_too_small(model.shape, serving, need, length, given)
        cache = given
    least = need.fixed_mib + cache
    if least > room:
        return _too_large(wish, model, serving, need, length, cache, room, rooms)
    if wish.gpu_memory_mib is not None:
        least = most = wish.gpu_memory_mib
    elif serving.kv_cache_bytes is not None:
        most = least
    else:
        usual = kv_mib(model.shape, serving, need, min(USUAL_TOKENS, length), wish.per_worker)
        most = min(max(least, need.fixed_mib + usual), max(rooms))
    return Sizing(
        gpus=gpus,
        max_model_len=length,
        is_cut=is_cut,
        least_mib=least,
        most_mib=max(least, most),
        weights_mib=need.weights_mib,
        kv_cache_mib=cache,
        activations_mib=need.activations_mib,
        graphs_mib=need.graphs_mib,
        other_mib=need.other_mib,
        lora_mib=need.lora_mib,
        is_learned=need.is_learned,
    )


def _length(wish: Wish, shape: ModelShape, serving: Serving, need: Needs, room: int) -> tuple[int, bool]:
    """Tokens of context, and whether they were cut to what fits."""
    if wish.max_model_len is not None:
        return wish.max_model_len, False
    given = serving.kv_cache_bytes
    free = room - need.fixed_mib if given is None else given // MIB
    if kv_mib(shape, serving, need, shape.longest) <= free:
        return shape.longest, False
    if given is None:
        free -= free // ROOM_PARTS
    longest = longest_mib(shape, serving, need, free)
    if longest > LENGTH_STEP:
        longest -= longest % LENGTH_STEP
    return max(min(LEAST_TOKENS, shape.longest), longest), True


def _too_large(
    wish: Wish,
    model: Model,
    serving: Serving,
    need: Needs,
    length: int,
    cache: int,
    room: int,
    rooms: tuple[int, ...],
) -> Unfit:
    total = need.fixed_mib + cache
    engine = need.activations_mib + need.graphs_mib + need.other_mib
    cards = f"each of {serving.gpus} GPUs" if serving.gpus > 1 else "one GPU"
    has = (
        f"gpu_memory_gib promises {room} MiB"
        if wish.gpu_memory_mib is not None and wish.gpu_memory_mib == room
        else f"of {'these cards the smallest' if serving.gpus > 1 else 'the largest card'} {room} MiB can be promised"
    )
    source = "as measured" if need.is_learned else "by estimate"
    slots = f" + {need.lora_mib} MiB for {_slots(wish.lora)}" if wish.lora is not None else ""
    reason = (
        f"The model cannot fit: weights {need.weights_mib} MiB{slots} + KV cache {cache} MiB for {length} tokens + "
        f"{engine} MiB for the engine itself ({source}: activations {need.activations_mib}, CUDA graphs "
        f"{need.graphs_mib}, CUDA and libraries {need.other_mib}) = {total} MiB on {cards}, and {has}"
    )
    return Unfit(reason, _advice(wish, model, serving, need, room, rooms), _param(wish))


def _slots(room: LoraRoom) -> str:
    return f"LoRA adapters ({room.max_loras} slots of rank {room.max_rank})"


def _param(wish: Wish) -> str:
    if wish.gpu_memory_mib is not None:
        return "gpu_memory_gib"
    return "gpus" if wish.gpus is not None else "model"


def _advice(wish: Wish, model: Model, serving: Serving, need: Needs, room: int, rooms: tuple[int, ...]) -> str:
    """What would fit, with numbers."""
    ways: list[str] = []
    longest = longest_mib(model.shape, serving, need, room - need.fixed_mib)
    if wish.max_model_len is not None and longest >= LEAST_TOKENS:
        ways.append(f"set max_model_len to at most {longest - longest % LENGTH_STEP}")
    if wish.gpu_memory_mib is not None and wish.gpu_memory_mib < rooms[serving.gpus - 1]:
        ways.append(f"raise gpu_memory_gib, up to {rooms[serving.gpus - 1] / 1024:.1f}")
    if wish.lora is not None and (wish.lora.max_loras > 1 or wish.lora.max_rank > 1):
        ways.append("lower lora.max_loras or lora.max_rank")
    lean = msgspec.structs.replace(serving, eager=True, sequences=min(serving.sequences, LEAN_SEQUENCES))
    if not need.is_learned and _fits(model, lean, wish.max_model_len or LEAST_TOKENS, room, wish.lora):
        ways.append(f"set the engine_args enforce-eager and max-num-seqs {LEAN_SEQUENCES}")
    more = _more_gpus(wish, model, serving, room)
    if more is not None:
        here = "" if more <= len(rooms) else f" (this machine has {len(rooms)})"
        ways.append(f"use {more} such GPUs{here}")
    ways.append("take a smaller model" if model.shape.quantised else "take a smaller or quantised model")
    text = ", or ".join(ways)
    return f"{text[0].upper()}{text[1:]}"


def _more_gpus(wish: Wish, model: Model, serving: Serving, room: int) -> int | None:
    """The smallest larger number of such cards that would do; None if none up to sixteen."""
    for count in range(serving.gpus + 1, GPUS_SUGGESTED + 1):
        if parallel_gpus(wish.args) is not None or not divides(model.shape, count):
            continue
        length = wish.max_model_len or min(model.shape.longest, USEFUL_TOKENS)
        if _fits(model, serving_of(wish.args, count, room), length, room, wish.lora):
            return count
    return None


def _fits(model: Model, serving: Serving, tokens: int, room: int, lora: LoraRoom | None) -> bool:
    """Whether, by estimate, an engine with one request of so many tokens fits into so many MiB of each card."""
    need = needs(model.weights, model.shape, serving, None, lora)
    return need.fixed_mib + kv_mib(model.shape, serving, need, tokens) <= room


def _cache_too_small(shape: ModelShape, serving: Serving, need: Needs, length: int, given: int) -> Unfit:
    longest = longest_mib(shape, serving, need, given)
    cache = kv_mib(shape, serving, need, length)
    return Unfit(
        f"The KV cache is too small: kv-cache-memory-bytes is {given} MiB on each GPU, and one request of {length} "
        f"tokens takes {cache} MiB",
        f"Raise it, leave it out, or set max_model_len to at most {longest}",
        "engine_args",
    )


def _indivisible(wish: Wish, shape: ModelShape, cards: int) -> Unfit:
    asked = wish.gpus or parallel_gpus(wish.args) or 1
    possible = [str(count) for count in range(1, max(cards, 8) + 1) if divides(shape, count)]
    return Unfit(
        f"The model cannot be cut into {asked} equal parts: it has {shape.attention_heads} attention heads, "
        f"{shape.kv_heads} KV heads, a vocabulary of {shape.vocab_size} and inner layers of "
        f"{shape.expert_size or shape.intermediate_size}",
        f"Set gpus to one of {', '.join(possible)}",
        "gpus" if wish.gpus is not None else "engine_args",
    )
