"""One run of the bench: two cores, a folder, the mock engine, the targets that started, and their rounds."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lib.bench import cpu
from lib.bench.child import Child, free_port, listens
from lib.bench.scenario import Scenario
from lib.bench.target import Bench, Target
from lib.console import ROOT, Problem, say, warn

ENGINE_SECONDS = 10
LOAD_LIMIT_SECONDS = 180


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
                say(f"   {name}: {self.targets[-1].about}")
            except Problem as problem:
                if name == needed:
                    raise
                warn(f"{name} is left out: {problem}")

    def measure(self, scenario: Scenario, target: Target, seconds: float) -> dict[str, Any]:
        """One round of one scenario for one target. Raises Problem if the load itself fails."""
        watch = target.watch()
        if self._engine is not None and "engine" not in watch:
            watch["engine"] = self._engine.pids()
        job = scenario.job(
            port=target.port,
            key=target.key,
            seconds=seconds,
            strict=target.strict,
            slowness=target.slowness,
            watch=watch,
        )
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

    @staticmethod
    def _environment() -> dict[str, str]:
        return dict(os.environ, PYTHONPATH=str(ROOT / "scripts"), PYTHONDONTWRITEBYTECODE="1")
