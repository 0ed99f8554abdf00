"""A lock file: pins with their markers and hashes, and which of them an image installs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from packaging.markers import Marker
from packaging.utils import canonicalize_name

from lib.console import ROOT, Problem

FOLDER = ROOT / "requirements"
LOCK_OF_IMAGE = {"gateway": "people", "manager": "manager"}
"""Which lock each image installs, as the Dockerfile says: the gateway's holds what people who sign in need."""
LINUX = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "sys_platform": "linux",
}
"""What markers ask of the machine. An image for another processor installs the same packages."""
PIN = re.compile(r"([a-z0-9][a-z0-9._-]*)==([^\s;]+)(?: ; (.*?))?(?: \\)?$")
HASH = re.compile(r"    --hash=(sha256:[0-9a-f]{64})(?: \\)?$")


@dataclass(frozen=True)
class Locked:
    """One pin. `hashes` are those of all files of that version, for every platform, each as `sha256:HEX`."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def read(name: str) -> tuple[Locked, ...]:
    """The pins of `requirements/NAME.txt`. Raises Problem: no such file, or a line that locks nothing."""
    try:
        text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.txt")))
        raise Problem(f"there is no requirements/{name}.txt; the lock files are {known}") from None
    return parse(text, f"requirements/{name}.txt")


def parse(text: str, title: str) -> tuple[Locked, ...]:
    """The pins of a lock file's text.

    Raises Problem, which names the line, where one is neither a pin, a hash nor a comment, or where a pin has no hash.
    """
    pins: list[tuple[int, Locked]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if pin := PIN.match(line):
            pins.append((number, Locked(canonicalize_name(pin[1]), pin[2], pin[3] or "", ())))
        elif (found := HASH.match(line)) and pins:
            at, last = pins[-1]
            pins[-1] = (at, Locked(last.name, last.version, last.marker, (*last.hashes, found[1])))
        elif line.strip() and not line.startswith("#"):
            raise Problem(f"{title}, line {number} is neither a pin, a hash nor a comment: {line.strip()}")
    for number, locked in pins:
        if not locked.hashes:
            raise Problem(f"{title}, line {number}: {locked.name} has no hash, so anything could be installed for it")
    return tuple(locked for _, locked in pins)


def environment(python: str) -> dict[str, str]:
    """What markers are evaluated against: Linux with this version of Python, such as 3.13.5."""
    return {
        **LINUX,
        "python_full_version": python,
        "implementation_version": python,
        "python_version": ".".join(python.split(".")[:2]),
        "platform_release": "",
        "platform_version": "",
    }


def holds(marker: str, where: Mapping[str, str]) -> bool:
    """Whether a pin with this marker is installed there."""
    return not marker or Marker(marker).evaluate(dict(where))


def installed(pins: tuple[Locked, ...], python: str) -> tuple[Locked, ...]:
    """The pins that are installed on Linux with this version of Python."""
    where = environment(python)
    return tuple(pin for pin in pins if holds(pin.marker, where))
