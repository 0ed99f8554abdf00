"""One trial from its first request to the last container gone."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from tests.support.waiting import wait_until
from tests.trial import promises
from tests.trial.asking import Clients
from tests.trial.cast import MODELS
from tests.trial.faults import Injection, Saboteur
from tests.trial.machine import TrialMachine
from tests.trial.report import Report, faults_by_kind, requests_by_model
from tests.trial.starvation import SLACK_SECONDS, Turn
from tests.trial.traffic import CHAT, Request, traffic
from tests.trial.witness import Witness

REST_SECONDS = 30.0
EXTRA_NUMBER = 1_000_000
"""Requests of the faults' own are counted from here."""
JOURNAL = ("worker_starts", "worker_ready", "worker_asleep", "worker_awake", "worker_stopped", "worker_died")
STOP_LIMIT_SECONDS = 8.0
"""The longest way off a card: HOSTLER_STOP_SECONDS is 5 here, and Docker takes a moment."""


class Trial:
    """One trial on one machine."""

    def __init__(self, machine: TrialMachine, seed: int, seconds: float) -> None:
        self.machine = machine
        self.seed = seed
        self.seconds = seconds
        self.broken: list[str] = []
        self.journal: list[dict[str, Any]] = []
        seeds = {model.name: model.seed for model in MODELS}
        self.clients = Clients(machine.stack.address, machine.stack.key, seeds, machine.pace.queue)
        self.witness = Witness(machine)
        self.saboteur = Saboteur(machine, self.witness, self._ask, seed)
        self._extra = EXTRA_NUMBER

    async def run(self) -> Report:
        """All of it; what was broken is in the report."""
        began = time.time()
        requests = traffic(self.seed, self.seconds, self.machine.pace, MODELS)
        watching = asyncio.create_task(self.witness.watch())
        work = asyncio.create_task(self._work(requests, began + self.machine.pace.faults_until * self.seconds))
        try:
            await asyncio.wait({watching, work}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                await watching  # raises what ended it
            await work
        finally:
            for task in (work, watching):
                task.cancel()
            await asyncio.gather(work, watching, return_exceptions=True)
            await self.clients.close()
        await asyncio.to_thread(self._at_rest)
        await asyncio.to_thread(self._nothing_left)
        return self._report(time.time() - began)

    async def _work(self, requests: list[Request], faults_until: float) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.clients.replay(requests))
            group.create_task(self.saboteur.run(faults_until))

    async def _ask(self, endpoint: str) -> None:
        self._extra += 1
        await self.clients.ask(
            Request(
                number=self._extra,
                at=0.0,
                model=endpoint,
                route=CHAT,
                stream=True,
                tokens=8,
                prompt=f"a question of our own, {self._extra}",
                batch=False,
                patience=None,
                leaves_after=None,
            )
        )

    # the end

    def _at_rest(self) -> None:
        """Every lease is back, and nobody waits."""
        stack = self.machine.stack

        def rests() -> bool:
            views = [stack.status(model.name) for model in MODELS]
            busy = sum(worker["in_flight"] for view in views for worker in view["workers"])
            return busy == 0 and not any(view["waiting"] for view in views)

        self._expect(rests, "leases and waiters are left over when nobody asks any more")

    def _nothing_left(self) -> None:
        """Without endpoints there is no container, no memory held, no socket and no worker."""
        machine, stack = self.machine, self.machine.stack
        self.journal = machine.journal(0.0)
        for model in MODELS:
            stack.client.delete(f"/api/endpoints/{model.name}")
        self._expect(lambda: not machine.containers(), "containers are left over")
        self._expect(lambda: not stack.workers(), "workers are left over")
        self._expect(lambda: not machine.host.live_claims(), "GPU memory is left over")
        self._expect(lambda: not machine.sockets(), "sockets or proofs are left over")
        self.broken += [f"in the log: {line}" for line in stack.project.faults()]

    def _expect(self, holds: Callable[[], bool], what: str) -> None:
        try:
            wait_until(holds, what, seconds=REST_SECONDS, interval=0.2)
        except AssertionError as missed:
            self.broken.append(f"orphan: {missed}")

    # the verdict

    def _report(self, took: float) -> Report:
        asked, faults, witness = self.clients.asked, self.saboteur.injected, self.witness
        turn = self._turn(faults)
        spells = witness.spells.all(time.time())
        checks = {
            "a right answer or a clear error": promises.wrong_answers(asked),
            "no answer breaks without a fault": promises.breaks_without_a_fault(asked, faults),
            "nobody is refused before the time": promises.refused_too_early(asked, self.machine.pace.queue),
            "no over-commit": [one for one in witness.broken if one.startswith("over-commit")],
            "no orphan": [one for one in (*witness.broken, *self.broken) if one.startswith("orphan")],
            "no failure but those injected": promises.unexplained(witness.deaths.values(), faults),
            "every fault is told as what it was": promises.unseen(faults),
            "the starvation bound": promises.starved(spells, faults, turn, SLACK_SECONDS),
            "no conflict and no bug in the logs": [one for one in self.broken if one.startswith("in the log")],
        }
        longest = max(spells, key=lambda spell: spell.seconds, default=None)
        journal = Counter(line.get("event", "") for line in self.journal)
        return Report(
            seed=self.seed,
            minutes=round(self.seconds / 60, 2),
            took_seconds=round(took),
            looks=witness.looks,
            requests=requests_by_model(asked),
            swaps={event: journal[event] for event in JOURNAL},
            faults=faults_by_kind(faults),
            injected=[msgspec.to_builtins(one) for one in faults],
            peak_promised_mib=dict(sorted(witness.peak_promised.items())),
            peak_used_mib=dict(sorted(witness.peak_used.items())),
            longest_load_seconds=round(turn.load, 1),
            bound_seconds={ahead: round(turn.bound(ahead)) for ahead in range(len(MODELS))},
            longest_unserved=msgspec.to_builtins(longest) | {"seconds": longest.seconds} if longest else {},
            broken={name: found for name, found in checks.items() if found},
            checks=list(checks),
        )

    def _turn(self, faults: list[Injection]) -> Turn:
        at_work = [(one.endpoint, one.at, one.over_at or one.at) for one in faults if one.at]
        fair = [
            end - begin
            for endpoint, begin, end in self.witness.loads
            if not any(endpoint == name and begin < until and end > since for name, since, until in at_work)
        ]
        pace = self.machine.pace
        return Turn(load=max([pace.load, *fair]), answer=pace.answer + 1.0, leave=STOP_LIMIT_SECONDS)
