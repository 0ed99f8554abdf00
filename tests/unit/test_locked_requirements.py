"""The locked requirements: complete, pinned, hashed, and free of any index's address or any machine's path."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = {
    "gateway": ("gateway",),
    "people": ("gateway", "people"),
    "manager": ("manager",),
    "dev": ("gateway", "people", "manager", "dev"),
}
PIN = re.compile(r"^([a-z0-9._-]+)==\S+( ;.*)? \\$", re.MULTILINE)
LOCKS = pytest.mark.parametrize("name", EXTRAS)


def lines(name: str) -> list[str]:
    return (ROOT / "requirements" / f"{name}.txt").read_text(encoding="ascii").splitlines()


def project() -> dict[str, Any]:
    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return loaded


@LOCKS
def test_every_named_dependency_is_locked(name: str) -> None:
    locked = {found[0] for found in PIN.findall("\n".join(lines(name)))}
    named = list(project()["dependencies"])
    for extra in EXTRAS[name]:
        named += project()["optional-dependencies"][extra]
    assert {re.split(r"[<>=!~\[; ]", item)[0].lower() for item in named} <= locked


@LOCKS
def test_every_line_is_a_pin_a_hash_or_a_comment(name: str) -> None:
    for line in lines(name):
        fitting = PIN.match(line) or re.match(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$", line) or line.startswith("# ")
        assert fitting, line


def test_the_gateways_lock_holds_no_docker_client() -> None:
    assert not [line for line in lines("gateway") if line.startswith(("docker==", "nvidia-ml-py==", "huggingface"))]


@LOCKS
def test_a_package_has_one_version_in_all_locks(name: str) -> None:
    def pins(lock: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", "\n".join(lines(lock)), re.MULTILINE))

    everything = pins("dev")
    assert {package: everything.get(package) for package in pins(name)} == pins(name)
