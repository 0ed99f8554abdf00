"""A CycloneDX document of one image: built from its lock, the same each time for the same input."""

import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.utils import canonicalize_name

from lib.console import Problem
from lib.supply import licences
from lib.supply.image import Contents
from lib.supply.lock_file import Locked

NAMESPACE = uuid.UUID("6f3a4e0e-2b52-4c0c-9d63-6d1f0d8f2b51")
"""Ours, of no further meaning: serial numbers are derived in it from what a document says."""
SCHEMA = SchemaVersion.V1_6


def python_component(pin: Locked) -> Component:
    """A locked package. Its hashes are those of the files it may be installed from, one of which an image has."""
    purl = PackageURL("pypi", None, pin.name, pin.version)
    licence = licences.of(pin.name, pin.version)
    files = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        # no address: which index serves the files is for each machine to say
        url=XsUri(purl.to_string()),
        comment="the files of this version, for all platforms, as locked",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each.removeprefix("sha256:")) for each in pin.hashes],
    )
    return Component(
        name=pin.name,
        version=pin.version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=purl.to_string(),
        licenses=[licence] if licence else None,
        external_references=[files],
    )


def image_components(found: Contents) -> list[Component]:
    """Debian packages of an image, and its Python where that is none of them."""
    made = []
    for name, version, architecture in found.debian:
        qualifiers = {"arch": architecture, "distro": f"{found.distribution}-{found.release}"}
        purl = PackageURL("deb", found.distribution, name, version, qualifiers)
        made.append(
            Component(name=name, version=version, type=ComponentType.LIBRARY, purl=purl, bom_ref=purl.to_string())
        )
    if not any(name.startswith("python3.") for name, _, _ in found.debian):
        purl = PackageURL("generic", None, "python", found.python)
        made.append(
            Component(name="python", version=found.python, type=ComponentType.PLATFORM, purl=purl, bom_ref=str(purl))
        )
    return made


def matches(pins: Iterable[Locked], found: Contents) -> None:
    """Nothing. Raises Problem where an image's Python packages are not those of the lock."""
    inside = {canonicalize_name(name): version for name, version in found.installed.items()}
    locked = {pin.name: pin.version for pin in pins}
    if inside != locked:
        differing = sorted(set(inside.items()) ^ set(locked.items()))
        told = ", ".join(f"{name} {version}" for name, version in differing)
        raise Problem(f"the image is not built from this checkout's lock; only one of the two has: {told}")


def build(
    name: str,
    version: str,
    pins: Iterable[Locked],
    edges: Mapping[str, set[str]],
    when: datetime,
    found: Contents | None = None,
) -> Bom:
    """The document of `hostler-NAME`. `edges` say who needs whom by name, under "" what Hostler itself needs."""
    subject = Component(
        name=f"hostler-{name}",
        version=version,
        type=ComponentType.CONTAINER,
        bom_ref=f"hostler-{name}",
        licenses=[LicenseFactory().make_with_id("Apache-2.0")],
    )
    libraries = {pin.name: python_component(pin) for pin in pins}
    system = image_components(found) if found else []
    metadata = BomMetaData(component=subject, timestamp=when.astimezone(UTC))
    bom = Bom(metadata=metadata, components=[*libraries.values(), *system])
    if found:
        metadata.properties.add(Property(name="hostler:image:id", value=found.id))
    direct = [libraries[one] for one in edges.get("", set()) & set(libraries)]
    bom.dependencies.add(Dependency(subject.bom_ref, [Dependency(one.bom_ref) for one in (*direct, *system)]))
    for each, component in libraries.items():
        needed = edges.get(each, set()) & set(libraries)
        bom.dependencies.add(Dependency(component.bom_ref, [Dependency(libraries[one].bom_ref) for one in needed]))
    # what it says decides its number, so that two documents with one number say the same
    bom.serial_number = uuid.UUID(int=0)
    bom.serial_number = uuid.uuid5(NAMESPACE, JsonV1Dot6(bom).output_as_string())
    return bom


def text(bom: Bom) -> str:
    """The document as JSON. Raises Problem where it is not what the schema of CycloneDX 1.6 asks for."""
    said = JsonV1Dot6(bom).output_as_string(indent=2) + "\n"
    if trouble := JsonStrictValidator(SCHEMA).validate_str(said):
        raise Problem(f"the document is not valid CycloneDX: {trouble}")
    return said
