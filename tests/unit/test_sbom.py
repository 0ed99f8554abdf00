"""The bill of materials: complete, valid, the same each time."""

import functools
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component
from lib.console import Problem
from lib.supply import document, graph, image, licences, lock_file, sbom

import gateway

ROOT = Path(__file__).resolve().parents[2]
WHEN = datetime(2026, 11, 23, tzinfo=UTC)
PARTS = pytest.mark.parametrize("part", ["gateway", "manager"])


def printed(part: str) -> str:
    """What `scripts/sbom PART` prints, with an order of Python's sets that is not this process's."""
    env = dict(os.environ, PYTHONHASHSEED="1", HOSTLER_PYTHON=sys.executable)
    command = [str(ROOT / "scripts" / "sbom"), part]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def told(part: str) -> dict[str, Any]:
    """The document of a part, made once."""
    return made(part)


def made(part: str, found: image.Contents | None = None) -> dict[str, Any]:
    lock = lock_file.LOCK_OF_IMAGE[part]
    pins = lock_file.installed(lock_file.read(lock), "3.13.5")
    edges = graph.needs(graph.roots(lock), lock_file.environment("3.13.5"))
    text = document.text(document.build(part, "1.2.3", pins, edges, WHEN, found))
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def contents(lock: str, **changes: str) -> image.Contents:
    pins = {pin.name: pin.version for pin in lock_file.installed(lock_file.read(lock), "3.13.5")}
    return image.Contents(
        id="sha256:abc",
        python="3.13.5",
        distribution="debian",
        release="13",
        installed=pins | changes,
        debian=[("libc6", "2.41-12", "amd64"), ("base-files", "13.8+deb13u8", "amd64")],
    )


def test_the_script_prints_a_valid_document_and_the_same_bytes_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(int(WHEN.timestamp())))
    text = printed("gateway")
    assert text.removesuffix("\n") == sbom.make("gateway", None).removesuffix("\n")
    said = json.loads(text)
    assert said["metadata"]["component"]["version"] == gateway.__version__
    assert said["metadata"]["timestamp"] == "2026-11-23T00:00:00+00:00"


@PARTS
def test_every_package_of_the_lock_is_a_component_with_its_address_version_and_hashes(part: str) -> None:
    pins = lock_file.installed(lock_file.read(lock_file.LOCK_OF_IMAGE[part]), "3.13.5")
    listed = {each["purl"]: each for each in told(part)["components"]}
    assert set(listed) == {f"pkg:pypi/{pin.name}@{pin.version}" for pin in pins}
    for pin in pins:
        (files,) = listed[f"pkg:pypi/{pin.name}@{pin.version}"]["externalReferences"]
        assert {f"sha256:{each['content']}" for each in files["hashes"]} == set(pin.hashes)


@PARTS
def test_everything_hangs_on_the_image_by_what_needs_it(part: str) -> None:
    said = told(part)
    needs = {each["ref"]: each.get("dependsOn", []) for each in said["dependencies"]}
    reached, queue = set[str](), [f"hostler-{part}"]
    while queue:
        ref = queue.pop()
        if ref not in reached:
            reached.add(ref)
            queue += needs[ref]
    assert reached - {f"hostler-{part}"} == {each["bom-ref"] for each in said["components"]}


def test_what_only_another_platform_installs_is_not_in_it() -> None:
    names = {each["name"] for each in told("gateway")["components"]}
    assert not names & {"colorama", "tzdata", "pywin32"}


def test_licences_are_spdx_where_packages_say_so() -> None:
    listed = {each["name"]: each.get("licenses") for each in told("gateway")["components"]}
    assert listed["litestar"] == [{"license": {"id": "MIT"}}]
    assert listed["python-stdnum"] == [{"license": {"id": "LGPL-2.0-or-later"}}]
    assert listed["cryptography"] == [{"expression": "Apache-2.0 OR BSD-3-Clause"}]


def test_a_licence_of_another_version_is_not_taken() -> None:
    assert licences.of("litestar", "0.0.1") is None
    assert licences.of("no-such-package", "1") is None


def test_a_whole_text_of_a_licence_is_not_its_name() -> None:
    facts = Message()
    facts["License"] = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software"
    assert licences.stated(facts) is None  # type: ignore[arg-type]


def test_an_image_adds_its_debian_packages_and_a_python_that_is_none_of_them() -> None:
    listed = {each["purl"] for each in made("gateway", contents("people"))["components"]}
    assert "pkg:deb/debian/libc6@2.41-12?arch=amd64&distro=debian-13" in listed
    assert "pkg:generic/python@3.13.5" in listed


def test_an_image_of_another_lock_is_refused_with_the_difference() -> None:
    pins = lock_file.installed(lock_file.read("people"), "3.13.5")
    document.matches(pins, contents("people"))
    with pytest.raises(Problem, match=r"only one of the two has: evil 6\.6\.6"):
        document.matches(pins, contents("people", evil="6.6.6"))


def test_another_content_has_another_number() -> None:
    assert told("gateway")["serialNumber"] != told("manager")["serialNumber"]


def test_what_the_schema_does_not_allow_is_not_printed() -> None:
    """Each document passes the same check on its way out."""
    nobody = Component(name="x", version="1", mime_type="no type at all")
    with pytest.raises(Problem, match="not valid CycloneDX"):
        document.text(Bom(metadata=BomMetaData(component=nobody)))


def test_a_time_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(Problem, match="SOURCE_DATE_EPOCH"):
        sbom.moment()


def test_the_label_of_the_version_is_the_versions_own() -> None:
    assert f"\nARG VERSION={gateway.__version__}\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
