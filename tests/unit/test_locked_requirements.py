"""The locked requirements: complete, pinned, hashed, and free of any index's address or any machine's path."""

import platform
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from lib.console import Problem
from lib.supply import graph, lock_file
from lib.supply.graph import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
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


@LOCKS
def test_a_lock_holds_all_that_its_packages_need_and_nothing_else(name: str) -> None:
    """By what the packages installed here say of themselves, on this Python."""
    python = platform.python_version()
    needed = set(graph.needs(graph.roots(name), lock_file.environment(python))) - {""}
    locked = {pin.name for pin in lock_file.installed(lock_file.read(name), python)}
    absent = {package for package in locked if not is_installed(package)}
    assert needed <= locked
    assert absent or locked == needed, "what is not installed here can't say what it needs"
    assert not absent or name == "dev", f"not installed, though needed to run: {absent}"


def is_installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


@LOCKS
def test_every_locked_version_is_one_that_the_project_allows(name: str) -> None:
    versions = {pin.name: pin.version for pin in lock_file.read(name)}
    wrong = [str(wanted) for wanted in graph.roots(name) if versions[wanted.name.lower()] not in wanted.specifier]
    assert wrong == []


@LOCKS
def test_what_has_compiled_parts_has_hashes_for_many_platforms(name: str) -> None:
    """It has files for each Python and processor; a lock made for one machine would show here."""
    compiled = {"httptools", "msgspec", "multidict", "uvloop", "pyyaml", "cffi", "charset-normalizer"}
    few = [pin.name for pin in lock_file.read(name) if pin.name in compiled and len(pin.hashes) < 10]
    assert few == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("httpx==0.28.1\n", "httpx has no hash"),
        ("a==1 \\\n    --hash=sha256:" + "0" * 64 + "\nb==2\n", "line 3: b has no hash"),
        ("a==1 \\\n    --hash=sha256:abc\n", "line 2"),
        ("a>=1\n", "line 1"),
        ("--index-url https://example.org/simple\n", "line 1"),
        ("a @ https://example.org/a.whl\n", "line 1"),
        ("    --hash=sha256:" + "0" * 64 + "\n", "line 1"),
    ],
)
def test_a_line_that_locks_nothing_is_refused_by_its_number(text: str, complaint: str) -> None:
    with pytest.raises(Problem, match=re.escape(complaint)):
        lock_file.parse(text, "lock")


def test_no_file_that_installs_names_an_index() -> None:
    """Which index serves the packages is for each machine to say."""
    option = re.compile(
        r"--(extra-)?index-url|--find-links(?! /)|\b(PIP|UV)_[A-Z_]*INDEX[A-Z_]*=|//[a-z.]*pypi[.]|pythonhosted"
    )
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    folders = ("requirements/", "scripts/", "docker/", ".ci/", "tests/testbed/")
    names = listed.stdout.split() or [str(path.relative_to(ROOT)) for path in (ROOT / "requirements").iterdir()]
    files = [name for name in names if name.startswith(folders) or "/" not in name]
    assert "requirements/gateway.txt" in files
    assert [name for name in files if option.search((ROOT / name).read_text(encoding="utf-8"))] == []
