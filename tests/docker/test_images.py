"""The images of gateway and manager: what is in them, whose it is, and what they say of themselves."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from lib.console import Problem
from lib.supply import image, lock_file, sbom
from packaging.utils import canonicalize_name

import gateway
from tests.support.compose import TAG, build_images, docker

PARTS = pytest.mark.parametrize("part", ["gateway", "manager"])
FENCE = ("run", "--rm", "--network", "none", "--cap-drop", "ALL", "--entrypoint", "python")
BUILDERS = [
    *("pip", "pip3", "pipx", "uv", "easy_install", "wheel", "virtualenv", "conda"),
    *("gcc", "g++", "cc", "c++", "clang", "ld", "as", "ar", "make", "cmake", "ninja", "rustc", "cargo", "go", "node"),
    *("npm", "git", "hg", "svn", "curl", "wget", "ssh", "scp", "rsync", "nc", "gdb", "strace"),
]
LOOK = """
import json, os, pathlib, shutil, stat, sys
tools, me = json.loads(sys.argv[1]), os.getuid()
found = {"tools": [name for name in tools if shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")]}
powers, writable, owners, distributions = [], [], set(), {}
for folder, names, files in os.walk("/"):
    if folder == "/":
        names[:] = sorted(set(names) - {"proc", "sys", "dev"})
    for path in [folder, *(os.path.join(folder, name) for name in files)]:
        facts = os.lstat(path)
        if stat.S_ISREG(facts.st_mode) and facts.st_mode & 0o6000:
            powers.append(path)
        if not stat.S_ISLNK(facts.st_mode) and os.access(path, os.W_OK):
            writable.append(path)
        if path.startswith("/opt/hostler") and (facts.st_uid, facts.st_gid) != (0, 0):
            owners.add(path)
    if folder.endswith((".dist-info", ".egg-info")):
        distributions[folder] = pathlib.Path(folder).name
    names[:] = [name for name in names if not os.path.islink(os.path.join(folder, name))]
modules = ["pip", "setuptools", "ensurepip", "wheel", "_distutils_hack", "pkg_resources"]
import importlib.util, subprocess
code = "import importlib.util as u, json, sys; print(json.dumps([m for m in sys.argv[1:] if u.find_spec(m)]))"
system = os.path.realpath(sys.executable)
known = [json.loads(subprocess.run([python, "-c", code, *modules], capture_output=True, check=True).stdout)
         for python in (sys.executable, system)]
print(json.dumps(found | {"uid": me, "powers": powers, "writable": writable, "owners": sorted(owners),
    "distributions": distributions, "modules": known}))
"""


@functools.cache
def name_of(part: str) -> str:
    """The image of this checkout, built."""
    build_images()
    return f"hostler/{part}:{TAG}"


@functools.cache
def inspected(part: str) -> dict[str, Any]:
    (facts,) = json.loads(docker("image", "inspect", name_of(part)))
    configured: dict[str, Any] = facts["Config"]
    return configured


@functools.cache
def inside(part: str, *, root: bool = False) -> dict[str, Any]:
    """What a process sees there: as the image's own user, or as root with the power to read everything."""
    who = ("--user", "0", "--cap-add", "DAC_READ_SEARCH") if root else ()
    words = (*FENCE, *who, name_of(part), "-c", LOOK, json.dumps(BUILDERS))
    told: dict[str, Any] = json.loads(docker(*words, seconds=120))
    return told


@PARTS
def test_labels_say_what_an_image_is_and_invent_no_address(part: str) -> None:
    labels = inspected(part)["Labels"]
    said = {name.removeprefix("org.opencontainers.image."): text for name, text in labels.items() if "opencont" in name}
    assert said["title"] == f"hostler-{part}"
    assert said["version"] == gateway.__version__
    assert said["licenses"] == "Apache-2.0"
    assert said["base.name"]
    assert said["revision"]
    assert len(said["description"]) > 20
    assert not {"source", "url", "documentation"} & set(said)


@PARTS
def test_nothing_in_an_image_builds_or_installs(part: str) -> None:
    found = inside(part, root=True)
    assert found["tools"] == []
    assert found["modules"] == [[], []], "of the virtual environment's Python, and of the system's"


@PARTS
def test_no_file_in_an_image_lends_anybody_the_powers_of_its_owner(part: str) -> None:
    assert inside(part, root=True)["powers"] == []


@PARTS
def test_the_only_python_distributions_anywhere_in_an_image_are_those_of_its_lock(part: str) -> None:
    contents = image.look(name_of(part))
    pins = lock_file.installed(lock_file.read(lock_file.LOCK_OF_IMAGE[part]), contents.python)
    assert {canonicalize_name(name): version for name, version in contents.installed.items()} == {
        pin.name: pin.version for pin in pins
    }
    lying = inside(part, root=True)["distributions"]
    assert len(lying) == len(pins)
    assert {str(Path(folder).parent) for folder in lying} == {str(Path(min(lying)).parent)}, "one site-packages"


@PARTS
def test_a_service_owns_and_writes_nothing_but_the_folders_of_its_volumes(part: str) -> None:
    found = inside(part)
    assert found["uid"] == 10001
    assert inside(part, root=True)["owners"] == [], "code belongs to root"
    own = {"/data", "/models", "/run/hostler", "/run/hostler/engines", "/run/hostler/manager", "/var/cache/hostler"}
    everybodys = {"/tmp", "/var/tmp", "/run/lock", "/run/shm"}
    assert set(found["writable"]) <= own | everybodys


@PARTS
def test_an_image_starts_without_a_shell(part: str) -> None:
    """Entry point and health check are programs, so the shell that Debian has is of use to nobody here."""
    found = inspected(part)
    assert found["Entrypoint"] == ["python", "-m", {"gateway": "gateway", "manager": "worker_manager"}[part]]
    assert not found["Cmd"] or found["Cmd"][0] != "/bin/sh"
    assert (found.get("Healthcheck") or {}).get("Test", ["CMD"])[0] == "CMD"
    assert found["User"] == "10001:10001"


def test_the_bill_of_materials_of_a_built_image_lists_debians_packages_too() -> None:
    said = json.loads(sbom.make("gateway", name_of("gateway")))
    kinds = {each["purl"].split("/")[0] for each in said["components"]}
    assert {"pkg:pypi", "pkg:deb"} <= kinds
    (number,) = [each["value"] for each in said["metadata"]["properties"] if each["name"] == "hostler:image:id"]
    assert number.startswith("sha256:")


def test_an_image_that_is_not_there_is_said() -> None:
    with pytest.raises(Problem, match="no-such-image"):
        image.look("hostler/no-such-image:ever")
