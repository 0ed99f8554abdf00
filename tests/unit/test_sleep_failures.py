"""What failed to sleep is not tried again: the memory outlives the process, and ends after a month."""

from pathlib import Path

import msgspec

from gateway.database.connection import Database
from gateway.scheduling.sleep_failures import KEPT_SECONDS, SleepFailures
from tests.support.planning import template
from worker_manager.contract import Failure, FailureKind, HostFacts, ObservedWorker, Residency, WorkerState

HOST = HostFacts(launcher="docker", device="cuda", engine="sha256:1")
SPEC = msgspec.structs.replace(template("a"), id="a-1")


def failed(kind: FailureKind) -> ObservedWorker:
    return ObservedWorker(
        spec=SPEC,
        spec_hash="x",
        state=WorkerState.BACKOFF,
        residency=Residency.GONE,
        since=5.0,
        socket="a-1/engine.sock",
        failure=Failure(kind=kind, message="only 3 of 900 MiB came back", hint=""),
    )


async def test_a_failed_sleep_is_remembered_by_image_and_model_across_a_restart(tmp_path: Path) -> None:
    for kind in (FailureKind.SLEEP_FAILED, FailureKind.WAKE_FAILED):
        folder = tmp_path / kind
        database = await Database.open(folder)
        failures = SleepFailures(database)
        await failures.load()
        await failures.learn([failed(kind)], HOST)
        await failures.learn([failed(kind)], HOST)
        await database.close()
        database = await Database.open(folder)
        again = SleepFailures(database)
        await again.load()
        assert again.reason(SPEC, HOST) == "only 3 of 900 MiB came back"
        assert again.reason(msgspec.structs.replace(SPEC, model="local/other"), HOST) == ""
        assert again.reason(SPEC, msgspec.structs.replace(HOST, engine="sha256:2")) == ""
        await database.close()


async def test_other_failures_say_nothing_about_sleep_and_a_month_later_it_is_tried_again(tmp_path: Path) -> None:
    clock = [1_000.0]
    database = await Database.open(tmp_path)
    failures = SleepFailures(database, lambda: clock[0])
    await failures.load()
    await failures.learn([failed(FailureKind.KILLED)], HOST)
    assert failures.reason(SPEC, HOST) == ""
    await failures.learn([failed(FailureKind.SLEEP_FAILED)], HOST)
    assert failures.reason(SPEC, HOST)
    clock[0] += KEPT_SECONDS + 1
    assert failures.reason(SPEC, HOST) == ""
    await failures.load()
    assert await database.rows("SELECT count(*) FROM sleep_failures") == [(0,)]
    await database.close()
