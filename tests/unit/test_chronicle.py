"""What becomes an event, and what is the same as before."""

from typing import Any

import msgspec

from gateway.chronicle import Chronicle
from gateway.endpoints.types import Endpoint, EndpointSpec, RolledBack
from gateway.events import Events
from gateway.scheduling.types import Decision, Plan, Verb
from tests.support.planning import template
from worker_manager.contract import (
    Download,
    DownloadState,
    Failure,
    FailureKind,
    HostFacts,
    ObservedSet,
    ObservedWorker,
    Residency,
    WorkerState,
)

FAILURE = Failure(kind=FailureKind.KILLED, message="killed", hint="see who", log_tail=("a", "b"), at=5.0)


class Scene:
    """A chronicle and what it has told since the last look."""

    def __init__(self) -> None:
        self.events = Events()
        self.states = [("a", "cold", "")]
        self.chronicle = Chronicle(self.events, lambda: self.states)
        self._seen = 0

    def told(self, kind: str = "") -> list[dict[str, Any]]:
        found, _ = self.events.after(self._seen)
        self._seen = self.events.newest
        told = [{"kind": event.kind.value, "endpoint": event.endpoint, **event.what} for event in found]
        return [one for one in told if kind in ("", one["kind"])]


def worker(state: WorkerState, **fields: Any) -> ObservedWorker:
    spec = msgspec.structs.replace(template("a"), id="w1")
    shown = {"residency": Residency.GONE, "since": 1.0, **fields}
    return ObservedWorker(spec=spec, spec_hash="x", state=state, socket="w1/engine.sock", **shown)


def observed(*workers: ObservedWorker, downloads: tuple[Download, ...] = ()) -> ObservedSet:
    host = HostFacts(launcher="process", device="cpu")
    return ObservedSet(manager="m", version=1, generation=1, workers=workers, host=host, downloads=downloads)


def planned(*reasons: str) -> Plan:
    decisions = tuple(Decision(verb=Verb.WAIT, endpoint="a", worker=None, reason=reason) for reason in reasons)
    return Plan(desired=(), draining=frozenset(), decisions=decisions, wake_at=None)


async def test_a_workers_states_are_told_once_each_and_at_last_that_it_is_gone() -> None:
    scene = Scene()
    for state in (WorkerState.LOADING, WorkerState.LOADING, WorkerState.READY):
        scene.chronicle.seen(observed(worker(state)))
    scene.chronicle.seen(observed())
    told = scene.told("worker")
    assert [one["state"] for one in told] == ["loading", "ready", "gone"]
    assert {one["endpoint"] for one in told} == {"a"}


async def test_another_residency_is_news_and_so_is_a_restart_between_two_looks_but_no_number_in_a_reason() -> None:
    scene = Scene()
    looks = [
        worker(WorkerState.READY, residency=Residency.HOT),
        worker(WorkerState.ASLEEP, residency=Residency.ASLEEP_1),
        worker(WorkerState.ASLEEP, residency=Residency.ASLEEP_2),
        worker(WorkerState.READY, residency=Residency.HOT, since=2.0),
        worker(WorkerState.READY, residency=Residency.HOT, since=3.0),
        worker(WorkerState.WAITING, reason="300 MiB are missing", since=4.0),
        worker(WorkerState.WAITING, reason="200 MiB are missing", since=4.0),
    ]
    for look in looks:
        scene.chronicle.seen(observed(look))
    assert [one["residency"] for one in scene.told("worker")] == ["hot", "asleep_1", "asleep_2", "hot", "hot", "gone"]


async def test_a_failure_is_told_without_its_log() -> None:
    scene = Scene()
    scene.chronicle.seen(observed(worker(WorkerState.FAILED, failure=FAILURE)))
    (told,) = scene.told("worker")
    assert told["failure"] == {"kind": "killed", "message": "killed", "hint": "see who"}


async def test_of_a_download_every_percent_is_told_and_not_every_byte() -> None:
    scene = Scene()
    for done in (0, 5, 9, 10, 11):
        running = Download(
            id="d", model="o/n", revision="main", state=DownloadState.RUNNING, bytes_done=done, bytes_total=1000
        )
        scene.chronicle.seen(observed(downloads=(running,)))
    assert [one["bytes_done"] for one in scene.told("download")] == [0, 10]
    scene.chronicle.seen(observed())
    assert [(one["id"], one["state"]) for one in scene.told("download")] == [("d", "gone")]


async def test_a_decision_is_told_again_only_if_more_than_its_numbers_has_changed() -> None:
    scene = Scene()
    for reason in ("3 waiting", "4 waiting", "no room"):
        scene.chronicle.planned(planned(reason), connected=True)
    assert [one["reason"] for one in scene.told() if one["kind"] == "decision"] == ["3 waiting", "no room"]


async def test_the_states_of_endpoints_and_the_managers_absence_are_told() -> None:
    scene = Scene()
    scene.chronicle.planned(planned(), connected=True)
    scene.states = [("a", "hot", "")]
    scene.chronicle.planned(planned(), connected=False)
    told = scene.told()
    assert [one["connected"] for one in told if one["kind"] == "manager"] == [True, False]
    assert [one["state"] for one in told if one["kind"] == "endpoint"] == ["cold", "hot"]


async def test_an_endpoints_state_is_told_by_the_look_that_shows_it_and_again_if_it_fails_for_another_reason() -> None:
    scene = Scene()
    for state, reason in (("cold", ""), ("cold", "3 waiting"), ("failed", "no file"), ("failed", "no memory, 3 MiB")):
        scene.states = [("a", state, reason)]
        scene.chronicle.seen(observed())
    scene.states = [("a", "failed", "no memory, 4 MiB")]
    scene.chronicle.seen(observed())
    assert [one["reason"] for one in scene.told("endpoint")] == ["", "no file", "no memory, 3 MiB"]


async def test_what_users_do_and_what_becomes_of_it_is_told() -> None:
    scene = Scene()
    spec = EndpointSpec(name="a", model="local/tiny")
    scene.chronicle.noted("changed", Endpoint(spec=spec, created_at=0, updated_at=0), ("model",))
    changed = {"model": {"from": "local/old", "to": "local/tiny"}}
    scene.chronicle.tried("a", RolledBack(changed=changed, failure=FAILURE, at=1.0))
    scene.chronicle.tried("a", None)
    told = scene.told()
    assert [one["change"] for one in told] == ["changed", "rolled_back", "proven"]
    assert told[0]["fields"] == ["model"]
    assert (told[1]["changed"], told[1]["failure"]["kind"]) == (changed, "killed")
