"""Hostler as users run it without Docker: gateway, worker manager, process launcher; its engine is the mock engine."""

import json
import os
import secrets
import shlex
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from lib.bench import wire
from lib.bench.child import Child, free_port
from lib.bench.target import Bench, Target
from lib.console import ROOT, Problem

START_SECONDS = 30
CALL_SECONDS = 10
PER_WORKER = 2048
CERTIFICATE, KEY = "certificate.pem", "key.pem"
TRUSTING = ssl._create_unverified_context()  # noqa: S323, SLF001 - the certificate was made a moment ago
MANY = 1_000_000_000
LIMITS = {
    "limits": {"requests_per_minute": MANY, "tokens_per_minute": MANY, "concurrency": PER_WORKER},
    "budget": {"tokens": MANY, "cost": MANY, "period": "day"},
}
PRICE = {"input": 1, "cached_input": 0.5, "output": 2}


class Hostler(Target):
    """Its own gateway and manager in a folder of its own; `limited`: its key has limits and a budget."""

    def __init__(self, bench: Bench, *, limited: bool, tls: bool = False) -> None:
        name, more = ("hostler", "limits, a budget in tokens and money, ") if limited else ("hostler-plain", "")
        if tls:
            name, more = "hostler-tls", more + "TLS with an EC key, "
        super().__init__(name, f"Hostler: key check, {more}hygiene, metering and request log, engine on a Unix socket")
        self.tls = tls
        self._bench = bench
        self._limited = limited
        self.slow = not limited  # it is there for what limits and budgets cost, and the plain scenarios tell
        self._folder = bench.folder / name
        self._admin = secrets.token_hex(16)
        self.port = free_port()

    def start(self) -> None:
        """Both processes, one endpoint, one worker, one key. Raises Problem."""
        model = self._folder / "models" / "local" / wire.MODEL
        model.mkdir(parents=True)
        (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}\n')
        if self.tls:
            make_certificate(self._folder)
        bench = self._bench
        self._launch("worker_manager", bench.engine_core)  # its engines inherit the core
        self._launch("gateway", bench.gateway_core)
        gateway = self.children[-1]
        gateway.wait_until(lambda: self._call("GET", "/readyz")[0] == 200, START_SECONDS)  # noqa: PLR2004 - OK
        endpoint = {
            "name": wire.MODEL,
            "model": f"local/{wire.MODEL}",
            "gpus": 0,
            "price": PRICE,
            "min_workers": 1,
            "per_worker": PER_WORKER,
        }
        self._make("/api/endpoints", endpoint)
        self.key = self._new_key()
        gateway.wait_until(self._is_hot, START_SECONDS)

    def watch(self) -> dict[str, list[int]]:
        """The manager and its engines are told apart from the gateway."""
        if len(self.children) < 2:  # noqa: PLR2004 - it never got so far
            return {"gateway": []}
        manager, gateway = (child.pids() for child in self.children)
        # the engines are the manager's children, and counted on the bench's side
        return {"manager": manager[:1], "engine": manager[1:], "gateway": gateway}

    def stop(self) -> None:
        """Both processes, then the engine, which would outlive them."""
        super().stop()
        ending = self._launch("worker_manager", self._bench.engine_core, "stop-workers")
        ending.finish(START_SECONDS)

    def _new_key(self) -> str:
        """A key, with limits that are counted and never reached."""
        body = {"name": "bench", "scopes": ["inference"], **(LIMITS if self._limited else {})}
        status, made = self._call("POST", "/api/keys", body)
        if status == 400:  # noqa: PLR2004 - this gateway has no limits yet
            self.about += " (no limits)"
            made = self._make("/api/keys", {"name": "bench", "scopes": ["inference"]})
        elif status not in {200, 201}:
            raise Problem(f"Hostler refused to make a key ({status}): {made}")
        return str(made["key"])

    def _launch(self, module: str, core: int, *words: str) -> Child:
        env = {name: value for name, value in os.environ.items() if not name.startswith("HOSTLER_")}
        engine = [str(self._bench.engine_python), "-m", "lib.bench.engine"]
        env |= {
            "PYTHONPATH": str(ROOT),
            "HOSTLER_ADMIN_KEY": self._admin,
            "HOSTLER_PORT": str(self.port),
            "HOSTLER_INSTANCE": f"{self.name}-{os.getpid()}",
            "HOSTLER_LAUNCHER": "process",
            "HOSTLER_DEVICE": "cpu",
            "HOSTLER_VLLM_COMMAND": shlex.join(engine),
            "HOSTLER_ENGINE_ENV": f"PYTHONPATH={shlex.quote(str(ROOT / 'scripts'))}",
        }
        env |= {f"HOSTLER_{name}": str(self._folder / name.lower()) for name in ("DATA", "RUN", "MODELS", "CACHE")}
        if self.tls:
            env |= {
                "HOSTLER_TLS_CERTIFICATE": str(self._folder / CERTIFICATE),
                "HOSTLER_TLS_KEY": str(self._folder / KEY),
            }
        name = "-".join((self.name, module, *words))
        command = [str(self._bench.python), "-m", module, *words]
        child = Child(name, command, core=core, log=self._folder / f"{name}.log", env=env)
        if not words:
            self.children.append(child)
        return child

    def _is_hot(self) -> bool:
        status, body = self._call("GET", f"/api/endpoints/{wire.MODEL}")
        state = body["status"] if status == 200 else {"state": "unknown"}  # noqa: PLR2004 - OK
        if state["state"] == "failed":
            raise Problem(f"Hostler's worker failed: {state.get('reason')}")
        return bool(state["state"] == "hot")

    def _make(self, path: str, body: dict[str, Any]) -> Any:
        status, made = self._call("POST", path, body)
        if status not in {200, 201}:
            raise Problem(f"Hostler refused POST {path} ({status}): {made}")
        return made

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status and decoded body; status 0 where nobody answers."""
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Authorization": f"Bearer {self._admin}", "Content-Type": "application/json"}
        address = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"
        request = urllib.request.Request(f"{address}{path}", data, headers, method=method)  # noqa: S310 - our own
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=TRUSTING))
        opener = urllib.request.build_opener(*handlers)
        try:
            with opener.open(request, timeout=CALL_SECONDS) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except OSError:
            return 0, None


def make_certificate(folder: Path) -> None:
    """A certificate for this run. Raises Problem where there is no openssl."""
    if not shutil.which("openssl"):
        raise Problem("openssl is not installed, which makes the certificate")
    words = ["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=bench"]
    words += ["-days", "2", "-keyout", str(folder / KEY), "-out", str(folder / CERTIFICATE)]
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, timeout=CALL_SECONDS, check=False)
    if done.returncode:
        raise Problem(f"openssl made no certificate: {done.stderr.strip()[-300:]}")


def start_secure(bench: Bench) -> Target:
    """A running Hostler with everything on, that speaks TLS."""
    return start(bench, tls=True)


def start_plain(bench: Bench) -> Target:
    """A running Hostler whose key has no limits."""
    return start(bench, limited=False)


def start(bench: Bench, *, limited: bool = True, tls: bool = False) -> Target:
    """A running Hostler with everything on."""
    target = Hostler(bench, limited=limited, tls=tls)
    try:
        target.start()
    except BaseException:
        target.stop()
        raise
    return target
