"""The file .env: read it, make it, add what is missing to it. A line that is there is never changed."""

import os
import secrets
from pathlib import Path

from lib.console import ROOT, Problem, say

KEY = "HOSTLER_ADMIN_KEY"
PRIVATE = 0o600
FIRST_LINES = """\
# Settings of this Hostler; .env.example lists them all. Keep this file to yourself: it holds the admin key.
"""


def path() -> Path:
    """Where .env lies; HOSTLER_ENV_FILE names another file."""
    return Path(os.environ.get("HOSTLER_ENV_FILE") or ROOT / ".env")


def read(file: Path) -> dict[str, str]:
    """The file's NAME=VALUE lines, without quotes around values; empty where there is no file."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except PermissionError:
        raise Problem(f"{file} cannot be read by you: it belongs to the user who ran scripts/up first") from None
    values: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            values[name.strip()] = _bare(value.strip())
    return values


def _bare(value: str) -> str:
    for quote in "'\"":
        if value.startswith(quote) and quote in value[1:]:
            return value[1 : value.index(quote, 1)]
    return value.split(" #", 1)[0].rstrip()


def settings() -> dict[str, str]:
    """The environment a process of Hostler gets: .env below, the shell's variables above it."""
    return read(path()) | dict(os.environ)


def ensure_key() -> bool:
    """Write an admin key into .env unless there is one, there or in the shell. True if one was written."""
    if settings().get(KEY):
        return False
    add(KEY, f"hst_admin_{secrets.token_hex(24)}")
    return True


def add(name: str, value: str) -> None:
    """Append a line; a new file is readable by its owner only."""
    file = path()
    fresh = not file.exists()
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, PRIVATE)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as stream:
        text = stream.read()
        gap = "" if not text or text.endswith("\n") else "\n"
        stream.write(f"{FIRST_LINES if fresh else gap}{name}={value}\n")
    if fresh:
        say(f"   made {file} (only you can read it)")


def add_missing(name: str, value: str) -> None:
    """Append a line unless .env or the shell has the variable already."""
    if not settings().get(name):
        add(name, value)


def models_folder() -> Path:
    """The models folder, made if it is missing: made by you it is yours, made by Docker it would be root's."""
    folder = ROOT / (settings().get("HOSTLER_MODELS") or "models")
    for name in ("local", "hub"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder
