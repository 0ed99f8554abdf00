"""What is inside a built image: its Python, its Python distributions, its Debian packages."""

import json
import subprocess
from typing import Any

import msgspec

from lib.console import Problem

SECONDS = 120
LOOK = """
import importlib.metadata as m, json, platform, subprocess, sys
lines = subprocess.run(
    ["dpkg-query", "-W", "-f", "${db:Status-Abbrev}\\t${Package}\\t${Version}\\t${Architecture}\\n"],
    capture_output=True, text=True, check=True).stdout.splitlines()
rows = [line.split("\\t") for line in lines]
print(json.dumps({
    "python": platform.python_version(),
    "distribution": platform.freedesktop_os_release()["ID"],
    "release": platform.freedesktop_os_release()["VERSION_ID"],
    "installed": {d.name: d.version for d in m.distributions()},
    "debian": [row[1:] for row in rows if row[0].startswith("ii")],
}))
"""


class Contents(msgspec.Struct, frozen=True):
    """An image's insides. `debian` has name, version and architecture of each package."""

    id: str
    python: str
    distribution: str
    release: str
    installed: dict[str, str]
    debian: list[tuple[str, str, str]]


def look(name: str) -> Contents:
    """Look into an image, in a container without network or powers. Raises Problem."""
    (inspected,) = json.loads(_docker("image", "inspect", name))
    fence = ["--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", "--entrypoint", "python"]
    told: dict[str, Any] = json.loads(_docker("run", *fence, name, "-c", LOOK))
    return msgspec.convert({**told, "id": inspected["Id"]}, Contents)


def _docker(*words: str) -> str:
    try:
        done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=SECONDS, check=False)
    except FileNotFoundError:
        raise Problem("the command docker is not installed, so no image can be looked into") from None
    except subprocess.TimeoutExpired:
        raise Problem(f"docker {words[0]} took longer than {SECONDS} s") from None
    if done.returncode != 0:
        raise Problem(f"docker {words[0]} failed: {done.stderr.strip()}")
    return done.stdout
