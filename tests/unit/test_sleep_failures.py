"""What failed to sleep is not tried again: that outlives the process, and ends with the engine or after a month."""

from pathlib import Path

import msgspec
import pytest

from gateway.database.connection import Database
from gateway.scheduling.sleep_failures import KEPT_SECONDS, SleepFailures
from tests.support.planning import template
from worker_manager.contract import HostFacts, ObservedWorker, Residency, WorkerState

IMAGE = HostFacts(launcher="docker", device="cuda", engine="sha256:1")
PROGRAM = HostFacts(launcher="process", device="cuda", program="vllm @1")
SPEC = msgspec.structs.replace(template("a"), id="a-1")
LIGHT, DEEP = Residency.ASLEEP_1, Residency.ASLEEP_2
WHY = "it failed before: only 3 of 900 MiB came back"


def worker(**broken: str) -> ObservedWorker:
    return ObservedWorker(
        spec=SPEC,
        spec_hash="x",
        state=WorkerState.BACKOFF,
        residency=Residency.GONE,
        since=5.0,
        socket="a-1/engine.sock",
        broken_sleep={Residency(level): reason for level, reason in broken.items()},
    )


@pytest.mark.parametrize(
    ("host", "another"),
    [
        (IMAGE, msgspec.structs.replace(IMAGE, engine="sha256:2")),
        (PROGRAM, msgspec.structs.replace(PROGRAM, program="vllm @2")),
    ],
    ids=["image", "program"],
)
async def test_a_failure_is_remembered_by_engine_model_and_level_across_a_restart(
    tmp_path: Path, host: HostFacts, another: HostFacts
) -> None:
    database = await Database.open(tmp_path)
    failures = SleepFailures(database)
    await failures.load()
    await failures.learn([worker(asleep_2=WHY)], host)
    await failures.learn([worker(asleep_2="it is told once more, in other words")], host)
    await database.close()
    database = await Database.open(tmp_path)
    again = SleepFailures(database)
    await again.load()
    assert again.reason(SPEC, host, DEEP) == WHY
    assert again.reason(SPEC, host, LIGHT) == ""
    assert again.reason(msgspec.structs.replace(SPEC, model="local/other"), host, DEEP) == ""
    assert again.reason(SPEC, another, DEEP) == "", "another engine may do better"
    await database.close()


async def test_a_month_later_it_is_tried_again_and_may_fail_again(tmp_path: Path) -> None:
    clock = [1_000.0]
    database = await Database.open(tmp_path)
    failures = SleepFailures(database, lambda: clock[0])
    await failures.load()
    await failures.learn([worker()], IMAGE)
    assert failures.reason(SPEC, IMAGE) == ""
    await failures.learn([worker(asleep_1=WHY)], IMAGE)
    assert failures.reason(SPEC, IMAGE) == WHY
    clock[0] += KEPT_SECONDS + 1
    assert failures.reason(SPEC, IMAGE) == ""
    await failures.learn([worker(asleep_1="again")], IMAGE)
    assert failures.reason(SPEC, IMAGE) == "again"
    clock[0] += KEPT_SECONDS + 1
    await failures.load()
    assert await database.rows("SELECT count(*) FROM sleep_failures") == [(0,)]
    await database.close()


async def test_what_could_not_be_written_counts_all_the_same_and_is_written_later(tmp_path: Path) -> None:
    database = await Database.open(tmp_path)
    failures = SleepFailures(database)
    await failures.load()
    async with database.transaction() as write:
        await write.execute("ALTER TABLE sleep_failures RENAME TO elsewhere")
    await failures.learn([worker(asleep_1=WHY)], IMAGE)
    assert failures.reason(SPEC, IMAGE) == WHY
    async with database.transaction() as write:
        await write.execute("ALTER TABLE elsewhere RENAME TO sleep_failures")
    await failures.learn([], IMAGE)
    assert await database.rows("SELECT level, reason FROM sleep_failures") == [(LIGHT.value, WHY)]
    await database.close()


async def test_what_an_earlier_version_remembered_is_kept_for_the_first_level(tmp_path: Path) -> None:
    migrations = sorted((Path(__file__).parents[2] / "gateway" / "database" / "migrations").glob("*.sql"))
    (script,) = [path.read_text() for path in migrations if "sleep_failures_before" in path.read_text()]
    database = await Database.open(tmp_path)
    async with database.transaction() as write:
        await write.execute("DROP TABLE sleep_failures")
        await write.execute(
            "CREATE TABLE sleep_failures (image TEXT, model TEXT, reason TEXT, at REAL, PRIMARY KEY (image, model))"
        )
        await write.execute("INSERT INTO sleep_failures VALUES ('sha256:1', ?, ?, 1e12)", (SPEC.model, WHY))
        for statement in script.split(";"):
            await write.execute(statement)
    failures = SleepFailures(database)
    await failures.load()
    assert failures.reason(SPEC, IMAGE, LIGHT) == WHY
    await database.close()
