"""A database that fails under a running gateway: inference goes on, `/readyz` says why, and it recovers by itself."""

import contextlib
import os
import resource
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.database.migrate import scripts
from tests.engine_simulator.configuration import Simulation
from tests.support.old_databases import old_database
from tests.support.processes import RunningProcess, python_module, short_folder
from tests.support.stack import Stack, running_stack
from tests.support.waiting import wait_until

DISK = "48m"
PAGE = 4096
RECOVERS_SECONDS = 20


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A small disk of its own."""
    with short_folder() as folder:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(folder)]
        if subprocess.run(command, capture_output=True, timeout=30, check=False).returncode != 0:
            pytest.skip("a file system can't be mounted here: it takes root")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True, timeout=30)


@pytest.fixture(scope="module")
def stack(disk: Path) -> Iterator[Stack]:
    places = {"HOSTLER_DATA": str(disk / "data"), "HOSTLER_BACKUPS": str(disk / "backups")}
    with running_stack(places) as started:
        started.endpoint("served", Simulation(answer_tokens=3))
        started.ask("served").raise_for_status()
        yield started


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """Not one byte is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(1 << 20))
    with filler.open("ab", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(512))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def unwritable(stack: Stack) -> Iterator[None]:
    """No write of the gateway's to any file works: neither to its database nor to its log."""
    assert stack.gateway is not None
    before = resource.prlimit(stack.gateway.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(stack.gateway.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(stack.gateway.pid, resource.RLIMIT_FSIZE, before)


def readiness(stack: Stack) -> tuple[int, str, str]:
    """Status code, status, and what is said of the database."""
    answer = stack.client.get("/readyz")
    return answer.status_code, answer.json()["status"], answer.json()["parts"]["database"]


def well(stack: Stack) -> bool:
    return readiness(stack) == (200, "ok", "ok")


def refused(stack: Stack, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The error of a management call that must be refused with 503 in the documented shape."""
    answer = stack.client.post(path, json=body)
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "service_unavailable_error"
    assert str(stack.folder) not in error["message"]
    assert stack.env["HOSTLER_DATA"] not in error["message"]
    return error


def served(stack: Stack, times: int) -> None:
    assert [stack.ask("served").status_code for _ in range(times)] == [200] * times


def requests(stack: Stack) -> int:
    report: dict[str, Any] = stack.client.get("/api/usage").json()
    return int(report["total"]["requests"]) + int(report["unwritten"])


def keys(stack: Stack) -> set[str]:
    return {key["name"] for key in stack.client.get("/api/keys").json()}


def test_on_a_full_disk_inference_goes_on_and_everything_is_written_when_there_is_room_again(
    stack: Stack, disk: Path
) -> None:
    wait_until(lambda: well(stack), "all is well", seconds=RECOVERS_SECONDS)
    before = requests(stack)
    key = stack.client.post("/api/keys", json={"name": "from before"}).json()["id"]
    with full(disk):
        served(stack, 10)
        error = refused(stack, "/api/keys", {"name": "never made"})
        assert error["code"] == "database_unavailable"
        assert "its disk is full" in error["message"]
        status, state, reason = readiness(stack)
        assert (status, state) == (200, "degraded")
        assert "its disk is full" in reason
        assert stack.metrics()["hostler_database_ok"] == 0
        assert refused(stack, "/api/backup", {})["code"] == "backup_failed"
        # what can't be recorded is not done: an order that nobody could account for
        for path in ("endpoints/served/start", "endpoints/served/stop", "downloads"):
            assert refused(stack, f"/api/{path}", {"model": "org/model"})["code"] == "database_unavailable"
        assert stack.client.put(f"/api/captures/{key}").status_code == 503
        assert stack.client.delete(f"/api/keys/{key}").status_code == 503
        served(stack, 10)
        assert stack.metrics()["hostler_usage_unwritten"] > 0
    wait_until(lambda: well(stack), "all is well again", seconds=RECOVERS_SECONDS)
    assert stack.client.get("/api/usage").json()["unwritten"] == 0
    assert requests(stack) == before + 20
    assert stack.client.post("/api/keys", json={"name": "made later"}).status_code == 201
    assert "never made" not in keys(stack)
    assert "from before" in keys(stack)
    assert stack.client.post("/api/backup").status_code == 201
    assert stack.metrics()["hostler_database_ok"] == 1


def test_files_that_take_no_writes_stop_no_request_and_are_written_to_again(stack: Stack) -> None:
    wait_until(lambda: well(stack), "all is well", seconds=RECOVERS_SECONDS)
    before = requests(stack)
    with unwritable(stack):
        error = refused(stack, "/api/keys", {"name": "never made"})
        assert error["code"] == "database_unavailable"
        assert "can't be read or written" in error["message"]
        assert readiness(stack)[:2] == (200, "degraded")
        served(stack, 5)
        assert stack.client.delete("/api/endpoints/served").status_code == 503
        served(stack, 1)
    wait_until(lambda: well(stack), "all is well again", seconds=RECOVERS_SECONDS)
    assert requests(stack) == before + 6
    assert stack.client.post("/api/keys", json={"name": "made later"}).status_code == 201


def test_a_damaged_page_is_told_keeps_inference_and_is_forgotten_once_it_is_mended(stack: Stack) -> None:
    wait_until(lambda: well(stack), "all is well", seconds=RECOVERS_SECONDS)
    before = keys(stack)
    with damaged_page(stack, "keys"):
        assert "its file is damaged" in refused(stack, "/api/backup", {})["message"]
        status, state, reason = readiness(stack)
        assert (status, state) == (200, "degraded")
        assert "its file is damaged" in reason
        assert "scripts/restore" in reason
        served(stack, 3)
    wait_until(lambda: well(stack), "it is read through and whole", seconds=RECOVERS_SECONDS)
    assert keys(stack) == before
    assert stack.client.post("/api/backup").status_code == 201


@contextlib.contextmanager
def damaged_page(stack: Stack, table: str) -> Iterator[None]:
    """The first page of a table is noise, behind the gateway's back."""
    path = Path(stack.env["HOSTLER_DATA"]) / "hostler.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        [(page,)] = reader.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchall()
        reader.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b", buffering=0) as stream:
        good = os.pread(stream.fileno(), PAGE, (page - 1) * PAGE)
        os.pwrite(stream.fileno(), os.urandom(PAGE), (page - 1) * PAGE)
        try:
            yield
        finally:
            os.pwrite(stream.fileno(), good, (page - 1) * PAGE)


def test_a_gateway_killed_on_a_full_disk_comes_back_though_nothing_can_be_written_nor_logged(
    stack: Stack, disk: Path
) -> None:
    wait_until(lambda: well(stack), "all is well", seconds=RECOVERS_SECONDS)
    assert stack.gateway is not None
    before = requests(stack)
    with full(disk):
        stack.gateway.kill()
        stack.gateway.stop()
        command = f"exec {' '.join(python_module('gateway'))} 2>/dev/full"
        stack.gateway = RunningProcess(["bash", "-c", command], stack.env)
        stack.gateway.wait_for_port(stack.port, 30)
        wait_until(stack.is_ready, "inference can go on")
        served(stack, 5)
        wait_until(lambda: readiness(stack)[1] == "degraded", "it says that it can't write")
    wait_until(lambda: well(stack), "all is well again", seconds=RECOVERS_SECONDS)
    assert requests(stack) == before + 5


def test_rows_that_cannot_be_read_harm_only_themselves(stack: Stack) -> None:
    key = stack.client.post("/api/keys", json={"name": "good"}).json()["key"]
    spoilt = stack.client.post("/api/keys", json={"name": "spoilt"}).json()["id"]
    assert stack.gateway is not None
    stack.gateway.stop()
    path = Path(stack.env["HOSTLER_DATA"]) / "hostler.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("INSERT INTO endpoints (name, spec, created_at, updated_at) VALUES ('spoilt', '[1]', 0, 0)")
        writer.execute("UPDATE keys SET scopes = '[\"no such scope\"]' WHERE name = 'spoilt'")
        writer.execute("INSERT INTO measured_memory VALUES ('a', 'b', 'c', 'd', '7', 0)")
    stack.start_gateway()
    wait_until(stack.is_ready, "inference can go on")
    answer = stack.client.post(
        "/v1/chat/completions",
        json={"model": "served", "messages": [{"role": "user", "content": "hello"}]},
        headers={"authorization": f"Bearer {key}"},
    )
    assert answer.status_code == 200
    assert {line["event"] for line in stack.log_lines()} >= {
        "endpoint unreadable",
        "key unreadable",
        "measurement unreadable",
    }
    status, state, reason = readiness(stack)
    assert (status, state) == (200, "degraded")
    assert reason.startswith("2 rows can't be read and are left out")
    assert stack.client.delete(f"/api/keys/{spoilt}").status_code == 204
    assert stack.client.delete("/api/endpoints/spoilt").status_code == 204
    assert well(stack)
    stack.endpoint("spoilt")


def refuses_to_start(data: Path, sentence: str) -> None:
    """The gateway ends at its start and says this."""
    env = {"HOSTLER_ADMIN_KEY": "a-key-of-the-tests", "HOSTLER_DATA": str(data), "HOSTLER_PORT": "0"}
    process = RunningProcess(python_module("gateway"), env)
    try:
        assert process.wait(30) != 0
        assert sentence in process.output
    finally:
        process.stop()


def test_a_file_that_is_no_database_ends_the_start_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "hostler.db").write_bytes(b"this is no database, but long enough to be looked at\n" * 100)
    refuses_to_start(
        tmp_path, "its file is damaged. Stop the gateway and put a backup back with scripts/restore (docs/operate.md"
    )


def test_a_read_only_file_system_ends_the_start_with_what_to_do(disk: Path) -> None:
    with short_folder() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
        subprocess.run(mount, check=True, timeout=30)
        try:
            old_database(folder / "data", len(scripts()))
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True, timeout=30)
            refuses_to_start(folder / "data", "its file is read-only. Let the gateway's user write to the folder")
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True, timeout=30)
    assert disk.exists()  # where it can't be mounted, the fixture has skipped this test
