"""Lets engines sleep and wakes them, each time with proof: memory that came back, answers that stayed the same.

A 200 from the engine is no proof. After a sleep NVML must show the memory; after a wake a fixed question must get the
answer it got before. What fails is remembered for every worker of the same image and model, as long as the manager
lives: sleep is an optimisation, and a worker that can't do it is stopped and started as ever.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import httpx
import msgspec
import structlog

from worker_manager.contract import ENGINE_SOCKET, Residency, SleepFacts, WorkerSpec
from worker_manager.engines import lora, sleep_rules, sleeping
from worker_manager.engines.readiness import RUNG_SECONDS, is_asleep, open_client
from worker_manager.proofs import Proof, Proofs
from worker_manager.room import RESIDUAL_MIB

BUSY_SECONDS = 10.0
"""How long requests that still run in a drained engine may take to end."""
ANSWER_SECONDS = 60.0
"""Limit of the fixed question."""
PROOF_SECONDS = 5.0
"""How long NVML may take to show what an engine gave back."""
POLL_SECONDS = 0.2
SHARE = 0.7
"""Least part that must come back of what an engine holds beyond what every sleeper keeps."""

logger = structlog.get_logger()


class SleepFailedError(Exception):
    """A sleep or a wake went wrong, so that the engine can't be trusted; the message says how.

    `lasting`: it would go wrong again, for every worker of that image and model. `level`: where the caller can't know.
    """

    def __init__(self, message: str, *, lasting: bool = True, level: Residency | None = None) -> None:
        super().__init__(message)
        self.lasting = lasting
        self.level = level


class StillBusyError(Exception):
    """The engine has requests; it was not told to sleep."""


class Sleeper:
    """Speaks to the engines of one manager.

    `image`: what a worker without an image of its own runs, empty without containers; `held`: MiB that a worker holds
    on each card now, empty where unknown; `used`: MiB in use on each card, by whomever.
    """

    def __init__(
        self,
        *,
        engines: Path,
        proofs: Proofs,
        enabled: bool,
        env: Mapping[str, str],
        sleep_seconds: float,
        wake_seconds: float,
        image: str,
        held: Callable[[str], Awaitable[dict[str, int]]],
        used: Callable[[], Awaitable[dict[str, int]]],
        host_free_mib: Callable[[], int],
    ) -> None:
        self._image = image
        self._used = used
        self._sleepless: dict[str, str] = {}
        self._engines = engines
        self._proofs = proofs
        self._enabled = enabled
        self._env = env
        self._sleep_seconds = sleep_seconds
        self._wake_seconds = wake_seconds
        self._held = held
        self._host_free_mib = host_free_mib
        self._broken: dict[tuple[str | None, str], dict[Residency, str]] = {}

    # what is known

    def judge(self, spec: WorkerSpec) -> tuple[str, str]:
        """Why an engine like this can't sleep at level 1, and at level 2; empty where nothing speaks against it."""
        broken = self.broken(spec)
        light = (
            sleep_rules.refusal(spec, self._env, enabled=self._enabled)
            or sleep_rules.image_refusal(spec.image or self._image)
            or broken.get(Residency.ASLEEP_1, "")
            or self._sleepless.get(spec.id, "")
        )
        deep = sleep_rules.deep_refusal(spec) or broken.get(Residency.ASLEEP_2, "")
        return light, light or deep

    def remember(self, spec: WorkerSpec, level: Residency, what: str) -> None:
        """No worker of this image and model sleeps at this level again."""
        logger.warning("sleep_given_up", image=spec.image, model=spec.model, level=level, cause=what)
        self._broken.setdefault((spec.image, spec.model), {})[level] = what

    def broken(self, spec: WorkerSpec) -> dict[Residency, str]:
        """The levels that have failed an engine of this image and model, and how."""
        return dict(self._broken.get((spec.image, spec.model), {}))

    def forbid(self, sleepless: Mapping[str, str]) -> bool:
        """These workers must not sleep, and why; whether that is news."""
        before, self._sleepless = self._sleepless, dict(sleepless)
        return self._sleepless != before

    def forget(self, worker: str) -> None:
        """The engine is gone."""
        self._proofs.remove(worker)

    # an engine that was found

    async def introduce(self, spec: WorkerSpec, created_at: float, route: str) -> str:
        """Learn how an engine that just became ready answers; returns why it can't sleep, empty if it can.

        Raises SleepFailedError where a wake had begun under an earlier manager and its answers changed.
        """
        light, _ = self.judge(spec)
        if light:
            return light
        proof = await self._proofs.read(spec.id, created_at)
        if proof is None:
            return await self._first_meeting(spec, created_at, route)
        if proof.pending == "wake":
            async with open_client(self._socket(spec), ANSWER_SECONDS) as client:
                await self._prove_answers(client, spec, proof)
        if proof.pending:
            await self._proofs.write(spec.id, msgspec.structs.replace(proof, pending="", level=Residency.HOT))
        return ""

    async def _first_meeting(self, spec: WorkerSpec, created_at: float, route: str) -> str:
        if not route:
            return "its kind of model is asked nothing that could prove a wake"
        try:
            async with open_client(self._socket(spec), ANSWER_SECONDS) as client:
                version = await sleeping.version(client)
                if why := sleep_rules.version_refusal(version):
                    self.remember(spec, Residency.ASLEEP_1, why)  # the next one starts without sleep mode
                    return why
                if await is_asleep(client) is None:
                    return "its engine was started without sleep mode; after its next start it can"
                mark = await sleeping.take_fingerprint(client, spec.served_names[0], route)
            if not mark.is_usable():
                return "its answers to one question differ, so that a wake could not be proven"
            await self._proofs.write(spec.id, Proof(created_at=created_at, version=version, fingerprint=mark))
        except (httpx.HTTPError, OSError, ValueError, KeyError, sleeping.SleepError) as error:
            return f"its engine could not be asked what it needs to sleep ({error!r})"
        return ""

    async def route(self, worker: str, created_at: float) -> str:
        """Where this engine was found to answer; empty where that is not known."""
        proof = await self._proofs.read(worker, created_at)
        return proof.fingerprint.route if proof is not None else ""

    async def found_asleep(self, spec: WorkerSpec, created_at: float) -> tuple[Residency, SleepFacts]:
        """The level of an engine that was found asleep. Raises SleepFailedError if its memory did not come back."""
        proof = await self._proofs.read(spec.id, created_at)
        if proof is not None and proof.level is not Residency.HOT:
            freed = await self._prove_memory(spec, proof)
            await self._proofs.write(spec.id, msgspec.structs.replace(proof, pending=""))
            return proof.level, SleepFacts(freed_mib=freed)
        async with open_client(self._socket(spec), RUNG_SECONDS) as client:
            told = (await sleeping.load(client)).level
        # level 2 is the safe guess: to read weights again that are there does no harm
        return (told if told is not Residency.HOT else Residency.ASLEEP_2), SleepFacts()

    # sleep and wake

    async def sleep(self, spec: WorkerSpec, created_at: float, level: Residency) -> SleepFacts:
        """Until the engine sleeps and its memory is back. Raises StillBusyError, SleepFailedError."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._sleep_seconds):
                return await self._sleep(spec, created_at, level, began)
        except TimeoutError as error:
            raise SleepFailedError(f"the engine did not fall asleep within {self._sleep_seconds:g} s") from error
        except (httpx.HTTPError, OSError, ValueError, sleeping.SleepError) as error:
            raise SleepFailedError(_words(error)) from error

    async def _sleep(self, spec: WorkerSpec, created_at: float, level: Residency, began: float) -> SleepFacts:
        proof = await self._proofs.read(spec.id, created_at)
        if proof is None:
            raise SleepFailedError("how it answers was lost, so that a wake could not be proven", lasting=False)
        async with open_client(self._socket(spec), self._sleep_seconds) as client:
            await self._drained(client)
            await _without_adapters(client, spec)
            hot_mib, host_free = await self._held(spec.id), self._host_free_mib()
            by_card = not hot_mib
            if by_card:
                hot_mib = await self._in_use(spec)
            begun = msgspec.structs.replace(proof, pending="sleep", level=level, hot_mib=hot_mib, by_card=by_card)
            await self._proofs.write(spec.id, begun)
            await sleeping.fall_asleep(client, proof.version, level)
        freed = await self._prove_memory(spec, begun)
        await self._proofs.write(spec.id, msgspec.structs.replace(begun, pending=""))
        return SleepFacts(
            freed_mib=freed,
            sleep_seconds=round(time.monotonic() - began, 3),
            host_mib=max(0, host_free - self._host_free_mib()),
        )

    async def wake(
        self, spec: WorkerSpec, created_at: float, level: Residency, before: SleepFacts | None
    ) -> SleepFacts:
        """Until the engine answers as it did. Raises SleepFailedError."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._wake_seconds):
                await self._wake(spec, created_at, level)
        except TimeoutError as error:
            raise SleepFailedError(f"the engine did not wake within {self._wake_seconds:g} s") from error
        except (httpx.HTTPError, OSError, ValueError, sleeping.SleepError) as error:
            raise SleepFailedError(_words(error)) from error
        return msgspec.structs.replace(before or SleepFacts(), wake_seconds=round(time.monotonic() - began, 3))

    async def _wake(self, spec: WorkerSpec, created_at: float, level: Residency) -> None:
        proof = await self._proofs.read(spec.id, created_at)
        if proof is None:
            raise SleepFailedError("how it answered was lost, so that its wake can't be proven", lasting=False)
        begun = msgspec.structs.replace(proof, pending="wake", level=level)
        await self._proofs.write(spec.id, begun)
        async with open_client(self._socket(spec), self._wake_seconds) as client:
            await sleeping.wake(client, proof.version, level)
            await self._prove_answers(client, spec, begun)
        await self._proofs.write(spec.id, msgspec.structs.replace(begun, pending="", level=Residency.HOT))

    # proof

    async def _drained(self, client: httpx.AsyncClient) -> None:
        """Raises StillBusyError if the engine's requests do not end: sleep would end them, and perhaps the engine."""
        deadline = time.monotonic() + BUSY_SECONDS
        while live := (await sleeping.load(client)).live:
            if time.monotonic() > deadline:
                raise StillBusyError(f"{live} requests still run in it")
            await asyncio.sleep(POLL_SECONDS)

    async def _in_use(self, spec: WorkerSpec) -> dict[str, int]:
        """MiB in use on each of a worker's cards, by whomever: what is left to go by where NVML tells no processes."""
        used = await self._used()
        return {uuid: used[uuid] for uuid in spec.gpus if uuid in used}

    async def _prove_memory(self, spec: WorkerSpec, proof: Proof) -> int | None:
        """MiB that came back, on the card with the least; None without NVML. Raises SleepFailedError."""
        hot_mib = proof.hot_mib
        if not hot_mib:
            return None
        least = {uuid: round(SHARE * max(0, own - RESIDUAL_MIB)) for uuid, own in owned_mib(spec, proof).items()}
        deadline = time.monotonic() + PROOF_SECONDS
        while True:
            now = await (self._in_use(spec) if proof.by_card else self._held(spec.id))
            freed = {uuid: had - now.get(uuid, 0) for uuid, had in hot_mib.items()}
            lacking = {uuid for uuid in hot_mib if freed[uuid] < least[uuid]}
            if not lacking:
                return min(freed.values())
            if time.monotonic() > deadline:
                uuid = min(lacking)
                what = f"only {max(freed[uuid], 0)} of {hot_mib[uuid]} MiB came back on GPU {uuid}"
                raise SleepFailedError(what, level=proof.level)
            await asyncio.sleep(POLL_SECONDS)

    async def _prove_answers(self, client: httpx.AsyncClient, spec: WorkerSpec, proof: Proof) -> None:
        try:
            later = await sleeping.ask(client, spec.served_names[0], proof.fingerprint.route)
        except (httpx.HTTPError, OSError, ValueError, sleeping.SleepError) as error:
            what = f"it did not answer after it woke: {_words(error)}"
            raise SleepFailedError(what, level=proof.level) from error
        if not proof.fingerprint.fits(later):
            raise SleepFailedError("its answers are not what they were before it slept", level=proof.level)

    def _socket(self, spec: WorkerSpec) -> Path:
        return self._engines / spec.id / ENGINE_SOCKET


async def _without_adapters(client: httpx.AsyncClient, spec: WorkerSpec) -> None:
    """Unload its adapters: they are loaded again once it is awake, whoever manages it then. Raises StillBusyError.

    A wake is only proven with the model itself, and there are reports of adapters that had no effect after one (vLLM
    issue 53888).
    """
    if spec.lora is None:
        return
    try:
        await lora.unload_all(client, spec.served_names[0])
    except lora.LoraError as error:
        raise StillBusyError(f"its adapters could not be unloaded ({error})") from error


def owned_mib(spec: WorkerSpec, proof: Proof) -> dict[str, int]:
    """What the engine held on each card before it slept; by its promise where only the card's total is known."""
    if not proof.by_card or spec.gpu_memory_mib is None:
        return proof.hot_mib
    return {uuid: min(used, spec.gpu_memory_mib) for uuid, used in proof.hot_mib.items()}


def _words(error: Exception) -> str:
    """An error's own words; those of the network have none that tell."""
    return str(error) if isinstance(error, sleeping.SleepError) else f"the engine broke off ({type(error).__name__})"
