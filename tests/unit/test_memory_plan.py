"""How workers are sized: properties that hold for every model and machine, and what refusals say."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.memory.config import Kind, Layers, ModelShape
from gateway.memory.estimate import Measured, Needs, kv_mib, needs
from gateway.memory.kv import cache_bytes, request_bytes
from gateway.memory.plan import LEAST_TOKENS, USEFUL_TOKENS, Model, Sizing, Unfit, Wish, divides, size
from gateway.memory.serving import Serving, serving_of
from gateway.memory.weights import Weights

GIB = 2**30
CARD = 24_000

LLAMA_8B = ModelShape(
    model_type="llama",
    hidden_size=4096,
    intermediate_size=14336,
    layers=(Layers(Kind.FULL, 32),),
    attention_heads=32,
    kv_heads=8,
    head_dim=128,
    value_head_dim=128,
    vocab_size=128256,
    longest=131072,
)
BIG = Weights(cut=15 * GIB, keys_and_values=int(0.25 * GIB), whole=1 << 20, is_exact=True)


def nothing(_gpus: int) -> Measured | None:
    return None


def sized(*rooms: int, weights: Weights = BIG, shape: ModelShape = LLAMA_8B, **wish: Any) -> Sizing | Unfit:
    ordered = tuple(sorted(rooms, reverse=True))
    return size(Wish(**wish), Model(weights=weights, shape=shape), ordered, max(rooms), nothing)


def fits(*rooms: int, **fields: Any) -> Sizing:
    found = sized(*rooms, **fields)
    assert isinstance(found, Sizing), found
    return found


def unfit(*rooms: int, **fields: Any) -> Unfit:
    found = sized(*rooms, **fields)
    assert isinstance(found, Unfit), found
    return found


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    """Models of every kind of layer; heads divide as those of real ones do."""
    kv_heads = draw(st.sampled_from([1, 2, 4, 8, 16]))
    layers = [Layers(draw(st.sampled_from([Kind.FULL, Kind.LATENT])), draw(st.integers(1, 80)))]
    if draw(st.booleans()):
        layers.append(Layers(Kind.SLIDING, draw(st.integers(1, 80)), window=draw(st.integers(1, 8192))))
    if draw(st.booleans()):
        layers.append(Layers(Kind.STATE, draw(st.integers(1, 60)), state_bytes=draw(st.integers(0, 1 << 22))))
    return ModelShape(
        hidden_size=draw(st.sampled_from([512, 4096, 7168])),
        intermediate_size=draw(st.sampled_from([1024, 14336, 18944])),
        layers=tuple(layers),
        attention_heads=kv_heads * draw(st.sampled_from([1, 2, 4, 8])),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([64, 128, 256])),
        value_head_dim=128,
        vocab_size=draw(st.sampled_from([32000, 151936, 256000])),
        longest=draw(st.sampled_from([2048, 8192, 131072])),
        latent_dim=576,
    )


sizes_of_weights = st.builds(
    Weights,
    cut=st.integers(0, 200 * GIB),
    keys_and_values=st.integers(0, 8 * GIB),
    whole=st.integers(0, GIB),
    is_exact=st.just(value=True),
)
ways = st.builds(
    Serving,
    tensor_parallel=st.sampled_from([1, 2, 4, 8]),
    stages=st.sampled_from([1, 2]),
    batch_tokens=st.sampled_from([512, 2048, 8192]),
    kv_dtype=st.sampled_from(["auto", "fp8", "fp8_per_token_head"]),
)


@given(shapes(), ways, st.integers(0, 200_000), st.integers(0, 5_000), st.integers(1, 64))
@settings(max_examples=150, deadline=None)
def test_a_longer_request_or_one_more_of_them_never_takes_less(
    shape: ModelShape, serving: Serving, tokens: int, more: int, requests: int
) -> None:
    assert request_bytes(shape, serving, tokens) <= request_bytes(shape, serving, tokens + more)
    assert cache_bytes(shape, serving, tokens, requests) <= cache_bytes(shape, serving, tokens, requests + 1)


@given(sizes_of_weights, shapes(), st.integers(1, 64))
@settings(max_examples=150, deadline=None)
def test_cutting_never_loses_a_byte_and_never_makes_a_part_larger(
    weights: Weights, shape: ModelShape, gpus: int
) -> None:
    part = weights.on_each(gpus, shape.kv_heads)
    assert part * gpus >= weights.total
    assert part <= weights.total
    assert weights.on_each(gpus, shape.kv_heads, stages=2) * 2 >= part
    one, many = Serving(), Serving(tensor_parallel=gpus)
    assert request_bytes(shape, many, 4096) * gpus >= request_bytes(shape, one, 4096)


@given(
    sizes_of_weights,
    shapes(),
    st.lists(st.integers(4_000, 140_000), min_size=1, max_size=8),
    st.none() | st.integers(1, 200_000),
    st.none() | st.integers(2_000, 140_000),
    st.integers(1, 256),
)
@settings(max_examples=300, deadline=None)
def test_what_is_promised_is_on_the_cards_and_enough_and_the_gpus_are_the_fewest_that_do(
    weights: Weights,
    shape: ModelShape,
    rooms: list[int],
    length: int | None,
    memory: int | None,
    per_worker: int,
) -> None:
    rooms.sort(reverse=True)
    model = Model(weights=weights, shape=shape)
    wish = Wish(max_model_len=length, gpu_memory_mib=memory, per_worker=per_worker)
    found = size(wish, model, tuple(rooms), rooms[0], nothing)
    if isinstance(found, Unfit):
        assert found.reason
        assert found.advice
        return
    assert divides(shape, found.gpus)
    assert found.least_mib <= min(rooms[found.gpus - 1], memory or 10**9)
    assert found.least_mib <= found.most_mib <= rooms[0]
    parts = found.weights_mib + found.kv_cache_mib + found.activations_mib + found.graphs_mib + found.other_mib
    assert parts <= found.least_mib
    serving = serving_of({}, found.gpus, rooms[0])
    need = needs(weights, shape, serving, None)
    assert found.kv_cache_mib >= kv_mib(shape, serving, need, length or min(LEAST_TOKENS, shape.longest))
    for fewer in range(1, found.gpus):
        smaller = size(msgspec.structs.replace(wish, gpus=fewer), model, tuple(rooms), rooms[0], nothing)
        cramped = isinstance(smaller, Sizing) and smaller.is_cut and smaller.max_model_len < USEFUL_TOKENS
        assert isinstance(smaller, Unfit) or cramped


@given(sizes_of_weights, shapes(), st.integers(4_000, 140_000), st.integers(1, 100_000), st.integers(1, 100_000))
@settings(max_examples=150, deadline=None)
def test_the_least_promise_grows_with_the_length(
    weights: Weights, shape: ModelShape, room: int, length: int, more: int
) -> None:
    model = Model(weights=weights, shape=shape)
    short = size(Wish(gpus=1, max_model_len=length), model, (room,), room, nothing)
    long = size(Wish(gpus=1, max_model_len=length + more), model, (room,), room, nothing)
    if isinstance(long, Sizing):
        assert isinstance(short, Sizing)
        assert short.least_mib <= long.least_mib


def test_a_model_too_long_for_the_card_gets_the_longest_context_that_fits() -> None:
    found = fits(CARD)
    assert (found.gpus, found.is_cut) == (1, True)
    assert USEFUL_TOKENS < found.max_model_len < 131072
    assert found.max_model_len % 256 == 0
    assert found.least_mib <= CARD
    assert found.least_mib > CARD * 9 // 10, "and not much shorter"


def test_a_card_with_room_gives_a_cache_for_many_requests_and_the_rest_to_others() -> None:
    found = fits(80_000, per_worker=64)
    assert (found.max_model_len, found.is_cut) == (131072, False)
    assert found.least_mib < found.most_mib < 80_000
    assert fits(80_000, per_worker=1).most_mib == fits(80_000, per_worker=1).least_mib


def test_a_promise_of_the_endpoints_own_is_kept_to_the_mib() -> None:
    found = fits(80_000, gpu_memory_mib=30_000)
    assert (found.least_mib, found.most_mib, found.is_cut) == (30_000, 30_000, True)


def test_a_second_gpu_is_taken_where_one_is_too_small_and_a_third_where_two_do_not_divide() -> None:
    large = Weights(cut=36 * GIB, is_exact=True)
    assert fits(*[CARD] * 4, weights=large).gpus == 2
    six_heads = msgspec.structs.replace(
        LLAMA_8B, attention_heads=48, kv_heads=6, vocab_size=64 * 9, intermediate_size=9
    )
    assert fits(*[CARD] * 4, weights=large, shape=six_heads).gpus == 3


def test_a_refusal_holds_the_arithmetic_and_what_would_do() -> None:
    found = unfit(16_000, max_model_len=131072)
    assert "weights 15617 MiB + KV cache 16386 MiB for 131072 tokens + " in found.reason
    assert "of the largest card 16000 MiB can be promised" in found.reason
    total = int(found.reason.split("= ")[1].split(" MiB")[0])
    parts = [int(found.reason.split(word)[1].split()[0].strip(",)")) for word in ("activations", "graphs", "libraries")]
    assert total == 15617 + 16386 + sum(parts)
    assert "Use 4 such GPUs (this machine has 1)" in found.advice
    assert "quantised" in found.advice


def test_a_length_that_is_too_long_is_refused_with_the_longest_that_fits() -> None:
    found = unfit(CARD, max_model_len=131072)
    longest = int(found.advice.split("max_model_len to at most ")[1].split(",")[0])
    assert fits(CARD, max_model_len=longest).least_mib <= CARD
    assert isinstance(sized(CARD, max_model_len=longest + 1024), Unfit)


def test_an_exact_cache_is_counted_and_may_not_be_too_small_for_a_request() -> None:
    exact = fits(80_000, args={"kv-cache-memory-bytes": 20 * GIB})
    assert (exact.kv_cache_mib, exact.most_mib) == (20 * 1024, exact.least_mib)
    assert "Raise it" in unfit(80_000, max_model_len=131072, args={"kv-cache-memory-bytes": GIB}).advice
    assert unfit(CARD, args={"kv-cache-memory-bytes": 20 * GIB}).reason.startswith("The model cannot fit")
    cut = fits(CARD, args={"kv-cache-memory-bytes": 4 * GIB})
    assert (cut.is_cut, cut.max_model_len <= 32768) == (True, True)


def test_flags_that_contradict_the_number_of_gpus_or_the_model_are_refused() -> None:
    assert "gpus is 1" in unfit(CARD, CARD, gpus=1, args={"tensor-parallel-size": 2}).reason
    assert "needs 4 GPUs" in unfit(CARD, CARD, args={"tensor-parallel-size": 2, "pipeline-parallel-size": 2}).reason
    found = unfit(*[CARD] * 3, gpus=3)
    assert "32 attention heads" in found.reason
    assert found.advice == "Set gpus to one of 1, 2, 4, 8"


def test_pipeline_stages_share_the_layers_and_replicas_do_not() -> None:
    whole = needs(BIG, LLAMA_8B, Serving(), None).weights_mib
    staged = needs(BIG, LLAMA_8B, Serving(stages=2), None).weights_mib
    assert whole / 2 < staged < whole * 0.6
    assert needs(BIG, LLAMA_8B, Serving(replicas=2), None).weights_mib == whole


def test_blocks_of_quantised_weights_are_never_cut() -> None:
    """As vLLM refuses Qwen3-30B-A3B-FP8 on four GPUs: 768 / 4 is no multiple of 128."""
    blocks = msgspec.structs.replace(LLAMA_8B, experts=128, expert_size=768, quantised=True, quant_block=128)
    assert [parts for parts in (1, 2, 4) if divides(blocks, parts)] == [1, 2]


def test_an_eager_engine_with_an_eight_bit_cache_needs_less() -> None:
    plain = fits(80_000)
    lean = fits(80_000, args={"enforce-eager": True, "kv-cache-dtype": "fp8", "max-num-seqs": 16})
    assert lean.graphs_mib == 0
    assert lean.activations_mib < plain.activations_mib
    assert lean.kv_cache_mib == pytest.approx(plain.kv_cache_mib / 2, abs=1)


def test_what_was_measured_replaces_the_estimate_part_by_part() -> None:
    shown = Measured(
        weights_mib=15_000, rest_mib=1_800, kv_cache_mib=6_144, kv_cache_tokens=49_152, max_model_len=16_384
    )
    need = needs(BIG, LLAMA_8B, Serving(), shown)
    assert (need.weights_mib, need.fixed_mib, need.is_learned) == (15_000, 16_800, True)
    assert need.kv_factor == pytest.approx(1.0, abs=0.01)
    larger = needs(BIG, LLAMA_8B, Serving(), msgspec.structs.replace(shown, kv_cache_mib=12_288))
    assert kv_mib(LLAMA_8B, Serving(), larger, 8_192) == pytest.approx(2 * 1_026, rel=0.01)
    mad = needs(BIG, LLAMA_8B, Serving(), msgspec.structs.replace(shown, kv_cache_mib=900_000))
    assert mad.kv_factor == 1.0


def test_needs_are_the_sum_of_their_parts() -> None:
    assert Needs(weights_mib=1, activations_mib=2, graphs_mib=3, other_mib=4).fixed_mib == 10
