"""The licence of an installed package, as an SPDX expression where its own words are one."""

from importlib import metadata

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseExpression

LONGEST_NAME = 60
"""Characters. Some packages give the whole text of their licence where its name should stand."""
SPDX = {
    "Apache Software License": "Apache-2.0",
    "BSD 2-Clause License": "BSD-2-Clause",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""Names and trove classifiers that packages use, where they mean one licence."""


def of(name: str, version: str) -> License | None:
    """The licence that a package states; None where this very version is not installed here, or says nothing."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    return stated(found.metadata) if found.version == version else None


def stated(facts: metadata.PackageMetadata) -> License | None:
    """What a package's metadata says: the expression first, then the name, then the classifiers."""
    factory = LicenseFactory()
    words = [_field(facts, "License-Expression"), _name(_field(facts, "License")), _classifier(facts)]
    made = [factory.make_from_string(SPDX.get(word, word)) for word in words if word]
    return next((each for each in made if _is_spdx(each)), next(iter(made), None))


def _is_spdx(licence: License) -> bool:
    return isinstance(licence, LicenseExpression) or (isinstance(licence, DisjunctiveLicense) and bool(licence.id))


def _field(facts: metadata.PackageMetadata, name: str) -> str | None:
    return next(iter(facts.get_all(name) or []), None)


def _name(said: str | None) -> str | None:
    """A licence's name, or the first line of its text, which often is the name."""
    line = (said or "").strip().splitlines()[:1]
    return line[0].strip() if line and len(line[0]) <= LONGEST_NAME else None


def _classifier(facts: metadata.PackageMetadata) -> str | None:
    lines = facts.get_all("Classifier") or []
    names = [line.rsplit("::", 1)[-1].strip() for line in lines if line.startswith("License ::")]
    # two classifiers say "and" or "or": nobody knows which
    return names[0] if len(names) == 1 else None
