"""Who needs whom, by what the installed packages say of themselves."""

import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib.console import ROOT

EXTRAS = {
    "gateway": ("gateway",),
    "people": ("gateway", "people"),
    "manager": ("manager",),
    "dev": ("gateway", "people", "manager", "dev"),
}
"""Which extras of pyproject.toml each lock is made from, as scripts/lock says."""


def roots(lock: str) -> list[Requirement]:
    """What pyproject.toml names for a lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"]]
    for extra in EXTRAS[lock]:
        named += project["optional-dependencies"][extra]
    return [Requirement(line) for line in named]


def needs(wanted: Iterable[Requirement], where: Mapping[str, str]) -> dict[str, set[str]]:
    """By package that `wanted` brings along, the names of those it needs in turn; under "" those wanted themselves.

    A package that is not installed here needs nothing, as far as anybody can say.
    """
    found: dict[str, set[str]] = {"": set()}
    seen: dict[str, set[str]] = {}
    queue = [("", requirement) for requirement in wanted]
    while queue:
        parent, requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        found[parent].add(name)
        found.setdefault(name, set())
        new = {"", *requirement.extras} - seen.setdefault(name, set())
        seen[name] |= new
        queue += [(name, each) for each in _requirements(name, new, where)]
    return found


def _requirements(name: str, extras: set[str], where: Mapping[str, str]) -> Iterable[Requirement]:
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if any(marker is None or marker.evaluate({**where, "extra": extra}) for extra in extras):
            yield requirement
