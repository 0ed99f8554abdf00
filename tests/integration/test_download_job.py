import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_server import HubServer, Repository

ROOT = Path(__file__).parents[2]
MODEL = "org/tiny"
WEIGHTS = "model.safetensors"
MIB = 1024 * 1024
WEIGHT_BYTES = 8 * MIB
DEADLINE_SECONDS = 60
TOKEN = "hf_let_me_in"

NEEDED = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "chat_template.jinja": b"{{ messages }}",
    "1_Pooling/config.json": b"{}",
    "empty.txt": b"",
    WEIGHTS: bytes(range(256)) * (WEIGHT_BYTES // 256),
}
LEFT_OUT = {
    "README.md": b"# tiny",
    ".gitattributes": b"*.bin filter=lfs",
    "modeling_tiny.py": b"import os",
    "pytorch_model.bin": b"pickle" * 1000,
    "model.gguf": b"gguf" * 1000,
}
NEEDED_BYTES = sum(map(len, NEEDED.values()))


class Job:
    """The download job as a real process, and what it has said."""

    def __init__(self, models: Path, endpoint: str, model: str = MODEL, *more: str, token: str | None = None) -> None:
        command = [sys.executable, "-m", "worker_manager.jobs.download", "--model", model, "--models", str(models)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        # the tests' own hub is on this machine: no proxy in between
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(models.parent / "hf"), "NO_PROXY": "*", "no_proxy": "*"}
        if token:
            environment["HF_TOKEN"] = token
        self.log = (models.parent / f"job-{time.monotonic_ns()}.log").open("w+")
        self.process = subprocess.Popen(
            [*command, "--reserve-gib", "0.1", *more],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.events: list[dict[str, Any]] = []
        self.saw = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self.saw:
                self.events.append(json.loads(line))
                self.saw.notify_all()

    def finish(self) -> tuple[int, dict[str, Any]]:
        """Wait for the end. Returns the exit status and the last event."""
        status = self.process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        return status, self.events[-1] if self.events else {}

    def named(self, event: str) -> list[dict[str, Any]]:
        """Every such event so far."""
        with self.saw:
            return [one for one in self.events if one["event"] == event]

    def wait_for(self, event: str) -> None:
        """Block until the job has told this event."""
        with self.saw:
            assert self.saw.wait_for(lambda: any(one["event"] == event for one in self.events), DEADLINE_SECONDS)

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


class Bench:
    """A hub, a models folder, and the jobs that were started."""

    def __init__(self, folder: Path, hub: HubServer) -> None:
        self.models = folder / "models"
        self.models.mkdir()
        self.hub = hub
        self.repository = hub.repositories[MODEL]
        self.jobs: list[Job] = []

    @property
    def home(self) -> Path:
        return self.models / "hub" / MODEL

    @property
    def final(self) -> Path:
        return self.home / self.repository.commit

    @property
    def reference(self) -> Path:
        return self.home / "refs" / "main"

    def partial(self) -> Path:
        return self.home / ".incoming" / self.repository.commit / (WEIGHTS + ".partial")

    def start(self, *more: str, model: str = MODEL, token: str | None = None, endpoint: str | None = None) -> Job:
        job = Job(self.models, endpoint or self.hub.url, model, *more, token=token)
        self.jobs.append(job)
        return job

    def run(self, *more: str, model: str = MODEL, token: str | None = None) -> tuple[int, dict[str, Any]]:
        return self.start(*more, model=model, token=token).finish()

    def assert_whole(self) -> None:
        """The model is there to the last byte, and nothing else is."""
        found = {str(path.relative_to(self.final)) for path in self.final.rglob("*") if path.is_file()}
        assert found == set(NEEDED)
        assert all((self.final / path).read_bytes() == content for path, content in NEEDED.items())
        assert self.reference.read_text().strip() == self.repository.commit
        assert {path.name for path in self.home.iterdir()} == {self.repository.commit, "refs"}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with HubServer([Repository(MODEL, {**NEEDED, **LEFT_OUT}, revisions=("main", "pr/1"))]) as hub:
        bench = Bench(tmp_path, hub)
        yield bench
        for job in bench.jobs:
            job.close()


def until(condition: Callable[[], bool]) -> None:
    """Look every few milliseconds until the condition holds; fail at the deadline."""
    deadline, pause = time.monotonic() + DEADLINE_SECONDS, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.02)


def start_and_hold(bench: Bench) -> Job:
    """Start a job and return once the hub holds back the rest of the weights."""
    bench.hub.faults.hold_after_bytes = WEIGHT_BYTES // 2
    job = bench.start()
    assert bench.hub.held.wait(DEADLINE_SECONDS)
    until(lambda: bench.partial().exists() and bench.partial().stat().st_size >= WEIGHT_BYTES // 2)
    return job


def let_go(bench: Bench) -> None:
    bench.hub.faults.hold_after_bytes = None
    bench.hub.release.set()


def test_a_model_arrives_whole_with_exact_totals(bench: Bench) -> None:
    job = bench.start()
    status, last = job.finish()
    assert status == 0
    commit = bench.repository.commit
    assert job.events[0] == {"event": "resolved", "commit": commit, "bytes_total": NEEDED_BYTES}
    assert last == {"event": "done", "path": f"hub/{MODEL}/{commit}", "bytes_done": NEEDED_BYTES}
    progress = [one["bytes_done"] for one in job.named("progress")]
    assert progress
    assert progress == sorted(progress)
    assert all(one["bytes_total"] == NEEDED_BYTES for one in job.named("progress"))
    bench.assert_whole()


def test_code_and_second_copies_of_the_weights_are_never_asked_for(bench: Bench) -> None:
    bench.run()
    assert not {one.path for one in bench.hub.served()} & set(LEFT_OUT)


def test_engines_of_another_user_can_read_the_model(bench: Bench) -> None:
    mask = os.umask(0o077)
    try:
        bench.run()
    finally:
        os.umask(mask)
    paths = [bench.reference, *bench.home.rglob("*")]
    assert all(path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644) for path in paths)


def test_a_killed_download_goes_on_where_it_stopped(bench: Bench) -> None:
    job = start_and_hold(bench)
    job.process.kill()
    job.process.wait(DEADLINE_SECONDS)
    assert not bench.reference.exists()
    assert not bench.final.exists()
    let_go(bench)
    second = bench.start()
    assert second.finish()[0] == 0
    assert second.named("progress")[0]["bytes_done"] >= WEIGHT_BYTES // 2
    resumed = bench.hub.served(WEIGHTS)[-1]
    assert resumed.has_range
    assert resumed.start >= WEIGHT_BYTES // 2
    assert resumed.count == WEIGHT_BYTES - resumed.start
    assert bench.hub.bytes_served(WEIGHTS) < 2 * WEIGHT_BYTES
    bench.assert_whole()


def test_a_broken_connection_is_taken_up_again(bench: Bench) -> None:
    bench.hub.faults.cut_after_bytes, bench.hub.faults.cuts_left = 3 * MIB, 2
    job = bench.start()
    status, last = job.finish()
    assert (status, last["bytes_done"]) == (0, NEEDED_BYTES)
    assert [one.start for one in bench.hub.served(WEIGHTS)] == [0, 3 * MIB, 6 * MIB]
    bench.assert_whole()


def test_a_server_that_ignores_ranges_is_no_trap(bench: Bench) -> None:
    job = start_and_hold(bench)
    job.process.kill()
    job.process.wait(DEADLINE_SECONDS)
    let_go(bench)
    bench.hub.faults.ignore_range = True
    status, last = bench.run()
    assert (status, last["bytes_done"]) == (0, NEEDED_BYTES)
    bench.assert_whole()


def test_a_damaged_part_of_an_earlier_run_is_thrown_away(bench: Bench) -> None:
    bench.partial().parent.mkdir(parents=True)
    bench.partial().write_bytes(b"\xff" * MIB)
    status, last = bench.run()
    assert (status, last["bytes_done"]) == (0, NEEDED_BYTES)
    bench.assert_whole()


def test_wrong_bytes_are_detected(bench: Bench) -> None:
    bench.repository.listed_sha256[WEIGHTS] = "0" * 64
    status, last = bench.run()
    assert (status, last["event"], last["kind"]) == (1, "failed", "unknown")
    assert "damaged" in last["message"]
    assert last["hint"]
    assert not bench.reference.exists()
    assert not bench.final.exists()
    assert not bench.partial().exists()


def test_a_gated_model_without_a_token_says_how_to_get_in(bench: Bench) -> None:
    bench.repository.token = TOKEN
    status, last = bench.run()
    assert (status, last["event"], last["kind"]) == (1, "failed", "model_gated")
    assert "HF_TOKEN" in last["hint"]
    assert not bench.reference.exists()


def test_a_gated_model_with_its_token_arrives(bench: Bench) -> None:
    bench.repository.token = TOKEN
    job = bench.start(token=TOKEN)
    assert job.finish()[0] == 0
    bench.assert_whole()
    job.log.seek(0)
    assert TOKEN not in job.log.read()


def test_the_token_is_not_shown_to_the_host_that_holds_the_weights(bench: Bench) -> None:
    bench.repository.token = TOKEN
    bench.hub.faults.redirect_large = True
    assert bench.run(token=TOKEN)[0] == 0
    assert all(one.has_token for one in bench.hub.served("config.json"))
    assert [one.has_token for one in bench.hub.served(WEIGHTS)] == [False]
    bench.assert_whole()


@pytest.mark.parametrize(
    ("model", "revision", "named"),
    [("org/nothing", "main", "org/nothing"), (MODEL, "v9", "v9"), ("org/..", "main", "org/.."), (MODEL, "../x", "x")],
)
def test_a_model_or_revision_that_is_not_there_is_named(bench: Bench, model: str, revision: str, named: str) -> None:
    status, last = bench.run("--revision", revision, model=model)
    assert (status, last["event"], last["kind"]) == (1, "failed", "model_missing")
    assert named in last["message"]
    assert last["hint"]
    assert not any(bench.models.iterdir())


def test_a_revision_with_a_slash_has_a_flat_reference(bench: Bench) -> None:
    assert bench.run("--revision", "pr/1")[0] == 0
    assert (bench.home / "refs" / "pr--1").read_text().strip() == bench.repository.commit


def test_a_hub_that_does_not_listen_is_called_offline(bench: Bench) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        job = bench.start(endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}")
        status, last = job.finish()
    assert (status, last["event"], last["kind"]) == (1, "failed", "offline")
    assert "HF_ENDPOINT" in last["hint"]
    assert not any(bench.models.iterdir())


def test_a_hub_without_a_name_is_called_offline(bench: Bench) -> None:
    status, last = bench.start(endpoint="http://no-such-host.invalid").finish()
    assert (status, last["kind"]) == (1, "offline")


def test_a_disk_that_is_too_small_is_found_before_the_first_byte(bench: Bench) -> None:
    status, last = bench.run("--reserve-gib", "1000000")
    assert (status, last["event"], last["kind"]) == (1, "failed", "disk_full")
    assert bench.hub.bytes_served() == 0
    assert not any(bench.models.iterdir())


def test_term_stops_cleanly_and_leaves_the_part_for_later(bench: Bench) -> None:
    job = start_and_hold(bench)
    job.process.send_signal(signal.SIGTERM)
    status, last = job.finish()
    assert (status, last["event"], last["kind"]) == (1, "failed", "cancelled")
    assert bench.partial().stat().st_size >= WEIGHT_BYTES // 2
    assert not bench.reference.exists()
    let_go(bench)
    assert bench.run()[0] == 0
    assert bench.hub.served(WEIGHTS)[-1].has_range


def test_a_model_that_is_there_is_not_fetched_again(bench: Bench) -> None:
    bench.run()
    before = bench.hub.bytes_served()
    status, last = bench.run("--reserve-gib", "1000000")
    assert (status, last["event"], last["bytes_done"]) == (0, "done", NEEDED_BYTES)
    assert bench.hub.bytes_served() == before
    bench.assert_whole()


def test_a_model_that_lost_a_file_is_repaired(bench: Bench) -> None:
    bench.run()
    (bench.final / "config.json").unlink()
    before = bench.hub.bytes_served()
    assert bench.run()[0] == 0
    assert bench.hub.bytes_served() - before == len(NEEDED["config.json"])
    bench.assert_whole()


def test_of_two_downloads_at_once_the_second_waits_and_fetches_nothing(bench: Bench) -> None:
    first = start_and_hold(bench)
    second = bench.start()
    second.wait_for("resolved")
    assert second.process.poll() is None
    let_go(bench)
    assert first.finish()[0] == 0
    assert second.finish()[0] == 0
    assert bench.hub.bytes_served() == NEEDED_BYTES
    bench.assert_whole()


@pytest.mark.parametrize(("answer", "kind"), [(404, "unknown"), (401, "model_gated"), (503, "unknown")])
def test_a_hub_that_refuses_every_file_is_quoted(bench: Bench, answer: int, kind: str) -> None:
    bench.hub.faults.status = answer
    status, last = bench.run()
    assert (status, last["event"], last["kind"]) == (1, "failed", kind)
    assert str(answer) in last["message"]
    assert not bench.final.exists()


def test_help_works() -> None:
    command = [sys.executable, "-m", "worker_manager.jobs.download", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=DEADLINE_SECONDS)
    assert "--reserve-gib" in done.stdout
