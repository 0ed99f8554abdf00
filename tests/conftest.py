"""Levels: every test belongs to the level its folder names; what this machine cannot run is skipped loudly, or fails.

HOSTLER_TEST_REQUIRE, levels with commas between, names those that must run in full: there a missing Docker Engine, and
any skipped test, is a failure. `scripts/test --require` sets it; CI does.
"""

import collections
import functools
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# how long an example takes says how busy the machine is, and nothing of what is tested
settings.register_profile("hostler", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hostler")

LEVELS = ("unit", "integration", "docker", "engine", "gpu")
FOLDER = Path(__file__).parent
SIMULATOR_IMAGE = "hostler/engine-simulator:latest"
VLLM_IMAGE = "vllm/vllm-openai-cpu:v0.32.0"

Counts = dict[str, collections.Counter[str]]
COUNTS: pytest.StashKey[Counts] = pytest.StashKey()


def required() -> frozenset[str]:
    """The levels that may not skip anything."""
    return frozenset(filter(None, os.environ.get("HOSTLER_TEST_REQUIRE", "").split(",")))


def level(item: pytest.Item) -> str | None:
    """The level of a test: the folder below tests/ that it lies in."""
    folders = item.path.relative_to(FOLDER).parts if item.path.is_relative_to(FOLDER) else ("",)
    return folders[0] if folders[0] in LEVELS else None


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@functools.cache
def unavailable(name: str) -> str | None:
    """Why this machine cannot run a level, in a sentence; None if it can."""
    if name in {"docker", "engine"}:
        # `docker version` fails where no daemon answers; `docker info` does not with every client
        if not _succeeds("docker", "version"):
            return "no Docker Engine answers (`docker version`)"
        image = SIMULATOR_IMAGE if name == "docker" else VLLM_IMAGE
        if not _succeeds("docker", "image", "inspect", image):
            return f"the image {image} is not here (scripts/test and .ci/run make it)"
    if name == "gpu" and not (shutil.which("nvidia-smi") and _succeeds("nvidia-smi", "-L")):
        return "no NVIDIA GPU (`nvidia-smi -L`)"
    return None


def pytest_configure(config: pytest.Config) -> None:
    counts: Counts = collections.defaultdict(collections.Counter)
    config.stash[COUNTS] = counts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = level(item)
        if name in {"docker", "engine", "gpu"} and item.get_closest_marker(name) is None:
            item.add_marker(name)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    name = level(item)
    if name and (why := unavailable(name)):
        if name in required():
            pytest.fail(f"the level {name} is required, but {why}", pytrace=False)
        pytest.skip(f"the level {name} cannot run here: {why}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    name = level(item)
    if name in required() and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, though the level {name} is required: {report.longrepr}"
    if name and (report.when == "call" or report.outcome != "passed"):
        item.config.stash[COUNTS][name][report.outcome] += 1
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = config.stash[COUNTS]
    if not counts:
        return
    terminalreporter.section("levels")
    for name in LEVELS:
        if name in counts:
            told = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts[name].items()))
            why = unavailable(name)
            terminalreporter.line(f"{name:<12} {told}" + (f"   NOT RUN: {why}" if why else ""))
