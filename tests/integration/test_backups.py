"""Backups of a Hostler at work, and what they are for: `scripts/backup` and `scripts/restore` as a person runs them."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import httpx
import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.battery import Tell
from tests.support.processes import REPOSITORY, RunningProcess, python_module, running, short_folder
from tests.support.stack import ADMIN_KEY, Stack, bearer, chat, running_stack
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
DRILL_SECONDS = 10.0


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        started.endpoint("drilled", Simulation(answer_tokens=3))
        started.ask("drilled").raise_for_status()
        yield started


def script(name: str, *words: str | Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script of this checkout with a Hostler's own settings and nobody else's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HOSTLER_")}
    kept |= {"HOSTLER_PYTHON": sys.executable, "HOSTLER_ENV_FILE": str(Path(env["HOSTLER_DATA"]).parent / ".env")}
    command = [sys.executable, str(REPOSITORY / "scripts" / name), "--no-docker", *map(str, words)]
    return subprocess.run(command, env=kept | dict(env), capture_output=True, text=True, timeout=60, check=False)


def backed_up(env: Mapping[str, str], *words: str | Path) -> Path:
    """The file that `scripts/backup` says it has made."""
    done = script("backup", *words, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(next(line for line in done.stdout.splitlines() if line.startswith("Backup: ")).split()[1])


class Users:
    """Requests without a pause, and new keys, on two threads."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask), threading.Thread(target=self._change)]
        self.statuses: list[int] = []
        self.keys = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self.statuses) > 3 and self.keys > 0, "requests are going on")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self) -> None:
        with httpx.Client(base_url=self._stack.address, headers=bearer(ADMIN_KEY), timeout=30) as client:
            while not self._stop.is_set():
                self.statuses.append(client.post(CHAT, json=chat("drilled")).status_code)

    def _change(self) -> None:
        with httpx.Client(base_url=self._stack.address, headers=bearer(ADMIN_KEY), timeout=30) as client:
            while not self._stop.wait(0.02):
                self.statuses.append(client.post("/api/keys", json={"name": "of the crowd"}).status_code)
                self.keys += 1


@contextlib.contextmanager
def fresh_hostler(stack: Stack) -> Iterator[Stack]:
    """A Hostler that was never started, with another's models."""
    with short_folder() as folder:
        fresh = Stack(folder, {"HOSTLER_MODELS": stack.env["HOSTLER_MODELS"]})
        try:
            yield fresh
        finally:
            fresh.stop()


def test_a_backup_under_load_restored_into_a_fresh_folder_serves_the_old_key_within_ten_seconds(
    stack: Stack, tmp_path: Path, record_property: Tell
) -> None:
    key = stack.client.post("/api/keys", json={"name": "from before"}).json()["key"]
    with Users(stack) as users:
        before = len(users.statuses)
        made = backed_up(stack.env, "--to", tmp_path)
        wait_until(lambda: len(users.statuses) > before + 5, "requests went on")
    assert set(users.statuses) <= {200, 201}

    began = time.monotonic()
    with fresh_hostler(stack) as fresh:
        done = script("restore", made, env=fresh.env)
        assert done.returncode == 0, done.stdout + done.stderr
        fresh.start()
        answer = httpx.post(fresh.address + CHAT, json=chat("drilled"), headers=bearer(key), timeout=DRILL_SECONDS)
        assert answer.status_code == 200, answer.text
        seconds = time.monotonic() - began
        assert seconds < DRILL_SECONDS
        record_property("restored, started and the old key served in", f"{seconds:.1f} s")
        assert fresh.client.get("/api/usage").json()["total"]["requests"] >= 1


def test_a_restore_is_refused_while_the_gateway_runs_whichever_way_it_is_asked(stack: Stack) -> None:
    made = backed_up(stack.env)
    assert made.parent == stack.folder / "backups"
    done = script("restore", made, env=stack.env)
    assert done.returncode == 1
    assert "the gateway runs: stop it first with scripts/down" in done.stderr
    with running(python_module("gateway.database", "restore", str(made), stack.env["HOSTLER_DATA"])) as past_it:
        assert past_it.wait() == 1
        assert "in use by a gateway that runs" in past_it.output
    assert stack.client.get("/api/endpoints/drilled").status_code == 200


def test_a_second_gateway_on_the_same_folder_does_not_start(stack: Stack) -> None:
    other = dict(stack.env, HOSTLER_PORT="0")
    process = RunningProcess(python_module("gateway"), other)
    try:
        assert process.wait() != 0
        assert "in use by a gateway that runs" in process.output
    finally:
        process.stop()


def test_a_backup_is_for_admins_and_tells_what_was_made(stack: Stack) -> None:
    made = stack.client.post("/api/backup")
    assert made.status_code == 201, made.text
    told = made.json()
    file = stack.folder / "backups" / told["name"]
    assert (told["bytes"], told["endpoints"]) == (file.stat().st_size, 1)
    assert told["seconds"] > 0
    assert len(told["sha256"]) == 64
    key = stack.client.post("/api/keys", json={"name": "x", "scopes": ["inference", "endpoints"]}).json()["key"]
    assert httpx.post(f"{stack.address}/api/backup", headers=bearer(key), timeout=30).status_code == 403
    assert httpx.post(f"{stack.address}/api/backup", timeout=30).status_code == 401


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    """An age identity (secret key) in a file."""
    if not shutil.which("age-keygen"):
        pytest.skip("the command age is not installed")
    subprocess.run(["age-keygen", "-o", tmp_path / "identity"], check=True, capture_output=True, timeout=30)
    return tmp_path / "identity"


def test_a_stopped_hostler_is_backed_up_and_restored_from_its_files_also_encrypted(
    stack: Stack, identity: Path, tmp_path: Path
) -> None:
    recipient = identity.read_text().split("public key: ")[1].split()[0]
    env = dict(stack.env, HOSTLER_DATA=str(tmp_path / "data"), HOSTLER_PORT="9", HOSTLER_BACKUPS=str(tmp_path / "b"))
    plain = backed_up(stack.env, "--to", tmp_path)
    assert script("restore", plain, env=env).returncode == 0
    made = backed_up(env, "--age", recipient)
    assert [file.name for file in made.parent.iterdir()] == [made.name]
    assert b"SQLite" not in made.read_bytes()
    assert script("backup", "--age", recipient, "--keep", "1", env=env).returncode == 0
    [made] = made.parent.iterdir()

    done = script("restore", made, env=env)
    assert (done.returncode, "--identity" in done.stderr) == (1, True)
    strange = tmp_path / "strange"
    subprocess.run(["age-keygen", "-o", strange], check=True, capture_output=True, timeout=30)
    done = script("restore", made, "--identity", strange, env=env)
    assert (done.returncode, "decrypting failed" in done.stderr) == (1, True)
    done = script("restore", made, "--identity", identity, env=env)
    assert done.returncode == 0, done.stderr
    assert "1 endpoints" in done.stdout
    assert "the old database is kept as hostler-before-restore-" in done.stdout


def test_the_scripts_say_what_is_missing(stack: Stack, tmp_path: Path) -> None:
    nowhere = dict(stack.env, HOSTLER_DATA=str(tmp_path / "none"), HOSTLER_PORT="9")
    done = script("backup", env=nowhere)
    assert (done.returncode, "nothing to back up" in done.stderr) == (1, True)
    done = script("restore", tmp_path / "no-such-file.db", env=nowhere)
    assert (done.returncode, "is not there" in done.stderr) == (1, True)
    (tmp_path / "some.db").write_bytes(b"rubbish" * 1000)
    done = script("restore", tmp_path / "some.db", env=nowhere)
    assert (done.returncode, "no whole SQLite database" in done.stderr) == (1, True)
    done = script("backup", env=dict(stack.env, HOSTLER_ADMIN_KEY="another-key-of-sixteen"))
    assert (done.returncode, "401" in done.stderr) == (1, True)
