"""One run of the bench: two cores, a folder, the mock engine, the targets that started, and their rounds."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lib.bench import cpu, profile
from lib.bench.child import Child, free_port, listens
from lib.bench.scenario import Scenario
from lib.bench.target import Bench, Target
from lib.console import ROOT, Problem, say, warn

ENGINE_SECONDS = 10
LOAD_LIMIT_SECONDS = 180
SETTLE_SECONDS = 2.0
"""From the start of a load until it is even enough to be sampled."""


class Session:
    """Use as a context: what was started is stopped at its end."""

    def __init__(self, folder: Path, python: Path, engine_python: Path) -> None:
        try:
            self.engine_core, self.gateway_core = cpu.two_cores()
        except ValueError as problem:
            raise Problem(
                f"scripts/bench needs two cores, one for the gateway and one for the rest: {problem}"
            ) from None
        self.folder = folder
        self.python = python
        self.engine_python = engine_python
        self.targets: list[Target] = []
        self._engine: Child | None = None
        self._port = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for target in reversed(self.targets):
            target.stop()
        if self._engine is not None:
            self._engine.stop()

    def engine_port(self) -> int:
        """Start the mock engine on loopback if it does not run yet."""
        if self._engine is None:
            self._port = free_port()
            command = [str(self.engine_python), "-m", "lib.bench.engine", "serve", f"--port={self._port}"]
            log = self.folder / "engine.log"
            self._engine = Child("the mock engine", command, core=self.engine_core, log=log, env=self._environment())
            self._engine.wait_until(lambda: listens(self._port), ENGINE_SECONDS)
        return self._port

    def start(self, starters: Mapping[str, Callable[[Bench], Target]], needed: str) -> None:
        """Start targets; all but the needed one may fail, which is told."""
        for name, begin in starters.items():
            try:
                self.targets.append(begin(self))
                self.targets[-1].rest()
                say(f"   {name}: {self.targets[-1].about}")
            except Problem as problem:
                if name == needed:
                    raise
                warn(f"{name} is left out: {problem}")

    def measure(self, scenario: Scenario, target: Target, seconds: float) -> dict[str, Any]:
        """One round of one scenario for one target. Raises Problem if the load itself fails."""
        target.go_on()
        try:
            return self._measure(scenario, target, seconds)
        finally:
            target.rest()

    def _measure(self, scenario: Scenario, target: Target, seconds: float) -> dict[str, Any]:
        watch = target.watch()
        if self._engine is not None and "engine" not in watch:
            watch["engine"] = self._engine.pids()
        job = scenario.job(target, seconds, watch)
        command = ["taskset", "-c", str(self.engine_core), str(self.engine_python), "-m", "lib.bench.load"]
        done = subprocess.run(
            command,
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            env=self._environment(),
            timeout=LOAD_LIMIT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise Problem(f"the load on {target.name} ({scenario.name}) failed:\n{done.stderr[-1500:]}")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def profile(self, scenario: Scenario, target: Target, seconds: float) -> str:
        """Samples of a gateway under one scenario, as folded stacks. Raises Problem."""
        output = self.folder / "stacks"
        output.unlink(missing_ok=True)
        with ThreadPoolExecutor(1) as beside:
            load = beside.submit(self.measure, scenario, target, seconds + 2 * SETTLE_SECONDS)
            time.sleep(SETTLE_SECONDS)
            sampler = profile.record(target.watch()["gateway"][0], seconds, output, self.engine_core)
            load.result()
            return profile.folded(sampler, output, seconds)

    @staticmethod
    def _environment() -> dict[str, str]:
        return dict(os.environ, PYTHONPATH=str(ROOT / "scripts"), PYTHONDONTWRITEBYTECODE="1")
