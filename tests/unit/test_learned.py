"""What engines have shown of their memory, in memory and in a real database file."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.database.connection import Database
from gateway.endpoints.types import EndpointSpec, ModelFacts
from gateway.learned import Learned, flags_hash, measured_of
from gateway.memory.config import read_shape
from gateway.memory.plan import Unfit
from gateway.memory.weights import Weights
from gateway.sizes import Sizes, WorkerSize
from tests.unit.test_memory_files import TINY
from worker_manager.contract import (
    GPU_CONTEXT_MIB,
    Gpu,
    HostFacts,
    LoraRoom,
    MeasuredMemory,
    ObservedSet,
    ObservedWorker,
    Residency,
    WorkerSpec,
    WorkerState,
)

SHOWN = MeasuredMemory(
    engine="sha256:one",
    weights_mib=15_000,
    kv_cache_mib=6_000,
    kv_cache_tokens=48_000,
    max_model_len=16_000,
    used_mib=22_500,
)
CONFIG = {**TINY, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
MODEL = ModelFacts(
    path="local/tiny", weights=Weights(cut=16_000 << 20, is_exact=True), shape=read_shape(CONFIG), revision="r1"
)


def host(engine: str = "sha256:one", total: int = 24_000, name: str = "card") -> HostFacts:
    gpu = Gpu(index=0, uuid="GPU-0", name=name, memory_total_mib=total, memory_used_mib=0)
    return HostFacts(launcher="docker", device="cuda", gpus=(gpu,), engine=engine)


def endpoint(**fields: Any) -> EndpointSpec:
    return EndpointSpec(name="a", model="local/tiny", **fields)


def worker(shown: MeasuredMemory | None = SHOWN, since: float = 1.0, **fields: Any) -> ObservedWorker:
    given = {"gpus": ("GPU-0",), "gpu_memory_mib": 23_000, "max_model_len": 16_000, **fields}
    spec = WorkerSpec(id="a-1", endpoint="a", model="local/tiny", served_names=("a",), **given)
    return ObservedWorker(
        spec=spec,
        spec_hash="x",
        state=WorkerState.READY,
        residency=Residency.HOT,
        since=since,
        socket="s",
        measured=shown,
    )


def observed(*workers: ObservedWorker, on: HostFacts | None = None) -> ObservedSet:
    return ObservedSet(manager="m", version=1, generation=1, workers=workers, host=on or host())


def model_at(path: str) -> ModelFacts | None:
    return MODEL if path == MODEL.path else None


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
def learned(database: Database) -> Learned:
    return Learned(database)


async def test_what_was_measured_is_found_again_after_a_restart(learned: Learned, database: Database) -> None:
    learned.notice(observed(worker()), model_at)
    await learned.save()
    again = Learned(database)
    assert again.find(endpoint(), MODEL, host(), 1) is None
    await again.load()
    for one in (learned, again):
        found = one.find(endpoint(), MODEL, host(), 1)
        assert found is not None
        assert (found.weights_mib, found.rest_mib) == (15_000, 2_000)


async def test_it_holds_for_that_model_engine_card_number_and_flags_only(learned: Learned) -> None:
    learned.notice(observed(worker()), model_at)
    assert learned.find(endpoint(max_model_len=1_000, per_worker=2), MODEL, host(), 1) is not None
    assert learned.find(endpoint(), MODEL, host(), 2) is None
    assert learned.find(endpoint(engine_args={"max-num-seqs": 8}), MODEL, host(), 1) is None
    assert learned.find(endpoint(), MODEL, host(engine="sha256:two"), 1) is None
    assert learned.find(endpoint(), MODEL, host(name="other"), 1) is None
    assert learned.find(endpoint(), msgspec.structs.replace(MODEL, revision="r2"), host(), 1) is None


async def test_where_the_engine_is_not_known_before_a_start_the_newest_measurement_counts(database: Database) -> None:
    now = iter((1.0, 2.0))
    learned = Learned(database, clock=lambda: next(now))
    learned.notice(observed(worker()), model_at)
    newer = msgspec.structs.replace(SHOWN, engine="sha256:two", weights_mib=14_000)
    learned.notice(observed(worker(newer, since=2.0)), model_at)
    found = learned.find(endpoint(), MODEL, host(engine=""), 1)
    assert found is not None
    assert found.weights_mib == 14_000


async def test_each_start_is_taken_once_and_the_next_one_replaces_it(learned: Learned, database: Database) -> None:
    learned.notice(observed(worker()), model_at)
    version = learned.version
    learned.notice(observed(worker()), model_at)
    assert learned.version == version
    learned.notice(observed(worker(msgspec.structs.replace(SHOWN, weights_mib=14_500), since=2.0)), model_at)
    assert learned.version == version + 1
    await learned.save()
    assert await database.rows("SELECT count(*) FROM measured_memory") == [(1,)]


async def test_a_row_that_cannot_be_read_harms_nobody(learned: Learned, database: Database) -> None:
    async with database.transaction() as write:
        await write.execute("INSERT INTO measured_memory VALUES ('m', 'e', 'g', 'f', '{}', 1)")
    await learned.load()
    assert learned.find(endpoint(), MODEL, host(), 1) is None


def test_the_rest_is_what_the_promise_or_nvml_has_beside_weights_and_cache() -> None:
    def rest(shown: MeasuredMemory, **fields: Any) -> int | None:
        found = measured_of(worker(shown, **fields))
        return found.rest_mib if found is not None else None

    assert rest(SHOWN) == 2_000
    assert rest(msgspec.structs.replace(SHOWN, used_mib=24_000)) == 3_000, "it passed its promise"
    assert rest(msgspec.structs.replace(SHOWN, used_mib=None)) == 2_000
    assert rest(SHOWN, gpu_memory_mib=21_100) == 1_500
    exact = {"kv-cache-memory-bytes": 6_000 << 20}
    assert rest(SHOWN, args=exact) == 1_500
    assert rest(msgspec.structs.replace(SHOWN, used_mib=None), args=exact) is None
    assert rest(msgspec.structs.replace(SHOWN, used_mib=None), gpu_memory_mib=21_000) == GPU_CONTEXT_MIB
    assert rest(msgspec.structs.replace(SHOWN, weights_mib=None)) is None
    assert rest(msgspec.structs.replace(SHOWN, kv_cache_mib=0)) is None
    assert rest(msgspec.structs.replace(SHOWN, weights_mib=90_000)) is None


def test_the_order_of_flags_does_not_matter_and_their_values_do() -> None:
    assert flags_hash({"a": 1, "b": 2}, 1) == flags_hash({"b": 2, "a": 1}, 1)
    assert flags_hash({"a": 1}, 1, LoraRoom()) != flags_hash({"a": 1}, 1)
    assert len({flags_hash({"a": 1}, 1), flags_hash({"a": 2}, 1), flags_hash({"a": 1}, 2)}) == 3


async def test_the_next_size_is_made_of_what_was_measured(learned: Learned) -> None:
    sizes = Sizes(512, learned)
    before = sizes.of(endpoint(), MODEL, host())
    assert isinstance(before, WorkerSize)
    assert before.source == "derived"
    learned.notice(observed(worker()), model_at)
    after = sizes.of(endpoint(), MODEL, host())
    assert isinstance(after, WorkerSize)
    assert (after.source, after.weights_mib) == ("learned", 15_000)
    parts = (after.weights_mib, after.activations_mib, after.graphs_mib, after.other_mib)
    assert sum(part or 0 for part in parts) == 17_000


async def test_a_model_that_has_run_is_not_refused_because_the_estimate_is_too_high(learned: Learned) -> None:
    sizes = Sizes(512, learned)
    small = host(total=16_500)
    assert isinstance(sizes.of(endpoint(), MODEL, small), Unfit)
    lean = msgspec.structs.replace(SHOWN, weights_mib=14_000, kv_cache_mib=900, used_mib=15_500)
    learned.notice(observed(worker(lean, gpu_memory_mib=15_900), on=small), model_at)
    assert isinstance(sizes.of(endpoint(), MODEL, small), WorkerSize)
