"""scripts/up and scripts/down as a stranger runs them, without Docker, with the engine simulator in vLLM's place."""

import os
import secrets
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.processes import REPOSITORY, accepts_connections, free_port, short_folder

UP_SECONDS = 90


class Stranger:
    """Somebody with a checkout and a folder for everything that Hostler writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env_file = folder / ".env"
        self.port = free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HOSTLER_")}
        self.environment = kept | {
            "HOSTLER_ENV_FILE": str(self.env_file),
            "HOSTLER_PYTHON": sys.executable,
            "HOSTLER_INSTANCE": f"hostler-test-{secrets.token_hex(4)}",
            "HOSTLER_PORT": str(self.port),
            "HOSTLER_RUN": str(folder / "run"),
            "HOSTLER_DATA": str(folder / "data"),
            "HOSTLER_CACHE": str(folder / "cache"),
            "HOSTLER_MODELS": str(folder / "models"),
            "HOSTLER_VLLM_COMMAND": f"{sys.executable} -m tests.engine_simulator",
            "HOSTLER_ENGINE_ENV": f"PYTHONPATH={REPOSITORY}",
        }

    def run(
        self, script: str, *words: str, env: Mapping[str, str] | None = None, answer: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a script to its end; `answer` is what the stranger types."""
        return subprocess.run(
            [str(REPOSITORY / "scripts" / script), *words],
            env=self.environment | dict(env or {}),
            cwd=self.folder,
            input=answer,
            capture_output=True,
            text=True,
            timeout=UP_SECONDS,
            check=False,
        )

    def up(self, *words: str) -> str:
        """What `scripts/up --no-docker` says, once it has succeeded."""
        done = self.run("up", "--no-docker", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    with short_folder() as folder:
        found = Stranger(folder)
        try:
            yield found
        finally:
            found.run("down")


def pasted(command: str) -> str:
    """What a command line prints when it is pasted into a shell."""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=UP_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def told_command(output: str) -> str:
    """The command line that `scripts/up` says to try first."""
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.strip().startswith("curl "))
    last = first
    while lines[last].endswith("\\"):
        last += 1
    return "\n".join(lines[first : last + 1])


def test_up_makes_a_key_starts_everything_and_tells_a_command_that_works(stranger: Stranger) -> None:
    output = stranger.up()
    assert "no Docker" in output
    assert stat.S_IMODE(stranger.env_file.stat().st_mode) == 0o600
    key = stranger.env_file.read_text(encoding="utf-8").split("HOSTLER_ADMIN_KEY=")[1].strip()
    assert len(key) >= 40
    assert key not in output
    assert '"object":"list"' in pasted(told_command(output)).replace(" ", "")


def test_the_demo_answers_and_down_leaves_nothing_running_but_all_the_data(stranger: Stranger) -> None:
    output = stranger.up("--demo")
    assert "chat.completion" in pasted(told_command(output))
    assert list((stranger.folder / "run" / "units").glob("*.json"))
    done = stranger.run("down")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not accepts_connections(("127.0.0.1", stranger.port))
    assert not list((stranger.folder / "run" / "units").glob("*.json"))
    assert list((stranger.folder / "data").iterdir())
    assert (stranger.folder / "models" / "local" / "demo" / "config.json").exists()


def test_the_first_requests_of_the_readme_work_as_they_stand(stranger: Stranger) -> None:
    stranger.up("--demo")
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = readme.split("## First request")[1].split("\n## ")[0].replace(":8000", f":{stranger.port}")
    shell, client = (block.split("\n", 1)[1] for block in section.split("```")[1::2])
    shell = shell.replace(" .env)", f" {stranger.env_file})")
    assert "chat.completion" in pasted(shell)
    (stranger.folder / "client.py").write_text(client, encoding="utf-8")
    exported = next(line for line in shell.splitlines() if line.startswith("export "))
    assert pasted(f"{exported}\n{sys.executable} {stranger.folder / 'client.py'}").strip()


def test_up_twice_changes_nothing(stranger: Stranger) -> None:
    stranger.up("--demo")
    before = stranger.env_file.read_text(encoding="utf-8")
    output = stranger.up("--demo")
    assert "gateway runs already" in output
    assert "registered already" in output
    assert stranger.env_file.read_text(encoding="utf-8") == before


def test_an_existing_key_is_kept_and_a_certificate_makes_it_https(stranger: Stranger) -> None:
    lines = ["# mine", "HOSTLER_ADMIN_KEY='my-own-key-of-some-length'"]
    lines += [f"{name}={path}" for name, path in Authority().sign(stranger.folder).settings.items()]
    stranger.env_file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    output = stranger.up()
    assert stranger.env_file.read_text(encoding="utf-8").startswith("# mine\nHOSTLER_ADMIN_KEY='my-own-key-of-some")
    assert f"https://127.0.0.1:{stranger.port}" in output
    assert '"data"' in pasted(told_command(output))


def test_a_taken_port_is_told_before_anything_starts(stranger: Stranger) -> None:
    with socket.create_server(("127.0.0.1", stranger.port)):
        done = stranger.run("up", "--no-docker")
    assert done.returncode == 1
    assert f"port {stranger.port} of 127.0.0.1 is taken" in done.stderr
    assert "HOSTLER_PORT=" in done.stderr
    assert not list((stranger.folder / "run").glob("*.pid"))


def test_a_setting_that_cannot_be_used_is_shown_with_the_log(stranger: Stranger) -> None:
    done = stranger.run("up", "--no-docker", env={"HOSTLER_MAX_BODY_MIB": "many"})
    assert done.returncode == 1
    assert "HOSTLER_MAX_BODY_MIB" in done.stdout + done.stderr


def test_purge_deletes_the_data_only_after_a_yes_and_never_the_models(stranger: Stranger) -> None:
    stranger.up()
    (stranger.folder / "models" / "local" / "mine").mkdir()
    refused = stranger.run("down", "--purge", answer="\n")
    assert "Nothing was deleted" in refused.stdout
    assert (stranger.folder / "data").exists()
    done = stranger.run("down", "--purge", answer="y\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (stranger.folder / "data").exists()
    assert (stranger.folder / "models" / "local" / "mine").exists()
