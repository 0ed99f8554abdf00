"""Virtual environments of the bench, kept outside the checkout from one run to the next."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lib.console import ROOT, Problem, answer, say

INSTALL_SECONDS = 900
REQUIREMENTS = ("gateway", "manager")
PROBE = "import aiosqlite, docker, httptools, litestar, msgspec, structlog, uvicorn, uvloop"
"""What Hostler's processes cannot do without."""


def cache_folder() -> Path:
    """Where environments are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hostler-bench"


def of_packages(name: str, *packages: str) -> Path:
    """An environment with these packages, the newest that install; its bin folder. Raises Problem."""
    folder = cache_folder() / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    # no builds: a compiler run of half an hour is no way to find out that a peer does not install here
    _make(folder, Path(sys.executable), ["--only-binary=:all:", *packages], " ".join(packages))
    return folder / "bin"


def of_hostler(python: Path) -> Path:
    """The same interpreter if it has what Hostler needs, else an environment of it that has. Raises Problem."""
    version = answer([str(python), "-c", "import sys; print(*sys.version_info[:3], sep='.')"])
    if version is None:
        raise Problem(f"--python {python}: this does not run")
    if answer([str(python), "-c", PROBE]) is not None:
        return python
    files = [ROOT / "requirements" / f"{name}.txt" for name in REQUIREMENTS]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    folder = cache_folder() / f"hostler-{version}-{digest}"
    words = ["--require-hashes", *(word for file in files for word in ("-r", str(file)))]
    _make(folder, python, words, f"the locked requirements for Python {version}")
    return folder / "bin" / "python"


def _make(folder: Path, interpreter: Path, words: list[str], what: str) -> None:
    """An environment of an interpreter with what these words of pip's name, unless it is there. Raises Problem."""
    done = folder / "installed"
    if done.exists():
        return
    say(f"   installing {what} into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # pip from outside, as Debian's interpreters bring none along
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q", "--no-input"]
    for command in ([str(interpreter), "-m", "venv", "--without-pip", str(folder)], [*pip, *words]):
        try:
            made = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise Problem(f"installing {what} took longer than {INSTALL_SECONDS} s") from None
        if made.returncode != 0:
            raise Problem(f"{what} cannot be installed: {(made.stdout + made.stderr).strip()[-600:]}")
    done.touch()
