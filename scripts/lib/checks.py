"""Run every check this machine can run, and say loudly which it could not.

Levels: lint, unit, integration, docker, engine, gpu. Without names, all of them. What a level needs and this machine
lacks makes it skip, unless --require names it. Words after -- go to pytest. The few tests that fail beside others run
once more on their own: what fails again has failed, and what passes then is named as unsteady.
"""

import argparse
import os
import subprocess
import time
from pathlib import Path

from lib import compose, console, engine, lanes, machine, venv
from lib.console import ROOT, Problem, say, warn

LEVELS = ("lint", "unit", "integration", "docker", "engine", "gpu")
LANES = (("integration",), ("unit", "docker", "engine", "gpu"))
"""Levels that run at once, of about the same length. They share nothing."""
SCRIPTS = sorted(
    str(each.relative_to(ROOT))
    for each in (ROOT / "scripts").iterdir()
    if each.is_file() and each.read_bytes().startswith(b"#!/usr/bin/env python3")
)
"""Python files that ruff does not find by their names."""
SIMULATOR_IMAGE = "hostler/engine-simulator:latest"
SIMULATOR_FILE = ROOT / "tests" / "engine_simulator" / "Dockerfile"


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options and the words for pytest."""
    own, further = words, []
    if "--" in words:
        cut = words.index("--")
        own, further = words[:cut], words[cut + 1 :]
    parser = argparse.ArgumentParser(
        prog="scripts/test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("levels", nargs="*", metavar="LEVEL", help=", ".join(LEVELS))
    parser.add_argument("--require", default="", metavar="LEVELS", help="levels, with commas, that must not skip")
    options = parser.parse_args(own)
    options.require = [name for name in options.require.split(",") if name]
    for name in [*options.levels, *options.require]:
        if name not in LEVELS:
            raise Problem(f"there is no level {name}; the levels are {', '.join(LEVELS)}")
    options.levels = [name for name in LEVELS if name in (options.levels or LEVELS)]
    return options, further


def check(title: str, command: list[str], env: dict[str, str] | None = None) -> tuple[str, bool]:
    """Run one check in sight; its line for the summary and whether it passed."""
    say(f"\n-- {title}: {' '.join(Path(word).name if word.startswith('/') else word for word in command)}")
    began = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    return f"{title} ({time.monotonic() - began:.0f} s)", code == 0


def lint(bin_folder: Path) -> list[tuple[str, bool]]:
    """Style, types and import contracts."""
    return [
        check("ruff check", [str(bin_folder / "ruff"), "check", ".", *SCRIPTS]),
        check("ruff format", [str(bin_folder / "ruff"), "format", "--check", ".", *SCRIPTS]),
        check("mypy", [str(bin_folder / "mypy")]),
        check("mypy of the scripts", [str(bin_folder / "mypy"), "-p", "lib"], dict(os.environ, MYPYPATH="scripts")),
        check("import contracts", [str(bin_folder / "lint-imports")]),
    ]


def build_images() -> str | None:
    """The images that the Docker levels run; why it did not work, or None."""
    if trouble := machine.docker_trouble():
        return trouble
    try:
        compose.build(gpu=False)
        if SIMULATOR_FILE.exists():
            words = ["docker", "build", "--quiet", "-f", str(SIMULATOR_FILE), "-t", SIMULATOR_IMAGE, str(ROOT)]
            if base := os.environ.get("BASE_IMAGE"):
                words[2:2] = ["--build-arg", f"BASE_IMAGE={base}"]
            console.do(words, "Building the engine simulator's image")
    except Problem as problem:
        return str(problem)
    return None


def gaps(levels: list[str], docker: str | None) -> dict[str, str]:
    """Levels that cannot run here, with the reason."""
    found: dict[str, str] = {}
    if docker:
        found |= dict.fromkeys({"docker", "engine"} & set(levels), docker)
    if "engine" in levels and "engine" not in found and not compose.image_exists(engine.CPU_IMAGE):
        found["engine"] = f"the image {engine.CPU_IMAGE} is not here (scripts/up --demo or .ci/run makes it)"
    if "gpu" in levels and not machine.gpus():
        found["gpu"] = "no NVIDIA GPU: nvidia-smi shows none"
    for name in levels:
        if not has_tests(name):
            found[name] = f"there is no test in tests/{name}"
    return found


def has_tests(level: str) -> bool:
    """Whether a level's folder holds any test file."""
    return any((ROOT / "tests" / level).glob("**/test_*.py"))


def run(words: list[str]) -> int:
    """The whole of scripts/test; its exit code."""
    options, further = parse(words)
    bin_folder = venv.ensure("dev").parent
    results: list[tuple[str, bool]] = lint(bin_folder) if "lint" in options.levels else []
    wanted = [name for name in options.levels if name != "lint"]
    docker = None
    if {"docker", "engine"} & set(wanted):
        say("\n-- images of gateway, worker manager and engine simulator")
        docker = build_images()
    missing = gaps(wanted, docker)
    env = dict(os.environ, HOSTLER_TEST_REQUIRE=",".join(options.require), PYTHONUNBUFFERED="1")
    if own := venv.vllm_command():
        env.setdefault("HOSTLER_TEST_VLLM_COMMAND", own)
    pytest = [str(bin_folder / "python"), "-m", "pytest"]
    # words for pytest may choose tests of one lane only, and nothing chosen is a failure of the other
    together = LANES if not further else (LEVELS,)
    folders = [[f"tests/{name}" for name in lane if name in wanted and has_tests(name)] for lane in together]
    results += lanes.run(
        [lanes.Lane(pytest, [*found, *further], env, number) for number, found in enumerate(folders) if found]
    )
    return summary(results, wanted, missing, options.require)


def summary(results: list[tuple[str, bool]], wanted: list[str], missing: dict[str, str], require: list[str]) -> int:
    """Say what ran, what failed and what could not run; the exit code."""
    say("\n==== scripts/test: what ran " + "=" * 60)
    for title, passed in results:
        say(f"  {'passed' if passed else 'FAILED'}  {title}")
    if ran := [name for name in wanted if name not in missing]:
        say(f"  levels run: {', '.join(ran)}")
    for name, why in missing.items():
        warn(f"NOT RUN: {name}: {why}" + ("  (required: this is a failure)" if name in require else ""))
    failed = [title for title, passed in results if not passed] + [name for name in missing if name in require]
    say("==== " + ("FAILED: " + ", ".join(failed) if failed else "everything that ran passed"))
    return 1 if failed else 0
