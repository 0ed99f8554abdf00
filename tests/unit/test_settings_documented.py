"""Every setting stands in .env.example, docs/configure.md and compose.yaml, by its name and with its default."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import settings as gateway_settings
from worker_manager import settings as manager_settings

ROOT = Path(__file__).resolve().parents[2]
ENV_LINE = re.compile(r"^(?:# )?([A-Z][A-Z0-9_]+)=(.*)$", re.MULTILINE)
DOCS_ROW = re.compile(r"^\| `([A-Z][A-Z0-9_]+)` \| (?:`([^`]*)`|required|none) \| [^|]+ \| [^|]+ \|$", re.MULTILINE)
COMPOSE_VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]+)")

COMPOSE_ONLY = {
    "BASE_IMAGE": "python:3.13-slim",
    "DOCKER_GID": "0",
    "HOSTLER_BACKUP_RECIPIENT": "",
    "HOSTLER_DOCKER_SOCKET": "/var/run/docker.sock",
    "HOSTLER_LITESTREAM_IMAGE": "litestream/litestream:0.3.13",
    "HOSTLER_LITESTREAM_REPLICA": "",
    "HOSTLER_MANAGER_UID": "0",
    "HOSTLER_DOMAIN": "localhost",
    "HOSTLER_HTTPS_PORT": "443",
    "HOSTLER_HTTP_PORT": "80",
    "HOSTLER_PROXY_IMAGE": "caddy:2.10",
    "HOSTLER_PROXY_TLS": "internal",
    "HOSTLER_STOP_GRACE": "45s",
    "HOSTLER_TAG": "latest",
    "HOSTLER_TLS_FOLDER": "tls",
}
"""Variables of compose.yaml and the scripts that neither process reads, with their defaults."""

SET_BY_SCRIPTS = {"HOSTLER_REVISION"}
"""Variables that scripts/up gives to compose and nobody else needs to know."""

NOT_IN_A_CONTAINER = {"gateway": set[str](), "worker_manager": {"HOSTLER_VLLM_COMMAND"}}
"""Settings that mean nothing to a process in its container."""


def gateway_name(field: str) -> str:
    return gateway_settings.PREFIX + field.upper()


def defaults(struct: type[msgspec.Struct], name: Any) -> dict[str, str]:
    """Variable name to the default's text, as .env would have it."""
    return {name(field.name): _text(field) for field in msgspec.structs.fields(struct)}


def _text(field: Any) -> str:
    value = field.default
    if value is msgspec.NODEFAULT:
        value = "" if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return " ".join(value)
    return "" if value in ({}, None) else str(value)


GATEWAY = defaults(gateway_settings.Settings, gateway_name)
MANAGER = defaults(manager_settings.Settings, manager_settings.environment_name)


def service_block(service: str) -> str:
    """The text of one service in compose.yaml."""
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    found = re.search(rf"^  {service}:\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    assert found, service
    return found.group(1)


def test_both_processes_agree_on_the_defaults_they_share() -> None:
    shared = GATEWAY.keys() & MANAGER.keys()
    assert {name: GATEWAY[name] for name in shared} == {name: MANAGER[name] for name in shared}


def test_the_example_file_holds_every_setting_with_its_default() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert dict(ENV_LINE.findall(text)) == GATEWAY | MANAGER | COMPOSE_ONLY


def test_only_the_key_is_not_commented_out_in_the_example_file() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert re.findall(r"^([A-Z]\w+)=", text, re.MULTILINE) == ["HOSTLER_ADMIN_KEY"]


def test_the_docs_hold_every_setting_with_its_default() -> None:
    text = (ROOT / "docs" / "configure.md").read_text(encoding="utf-8")
    assert dict(DOCS_ROW.findall(text)) == GATEWAY | MANAGER | COMPOSE_ONLY


@pytest.mark.parametrize(("service", "expected"), [("gateway", GATEWAY), ("worker_manager", MANAGER)])
def test_compose_passes_every_setting_to_its_process(service: str, expected: dict[str, str]) -> None:
    passed = set(re.findall(r"^      ([A-Z][A-Z0-9_]+):", service_block(service), re.MULTILINE))
    assert passed == set(expected) - NOT_IN_A_CONTAINER[service]


def test_every_variable_of_the_compose_files_is_documented() -> None:
    used: set[str] = set()
    for name in ("compose.yaml", "compose.gpu.yaml"):
        used |= set(COMPOSE_VARIABLE.findall((ROOT / name).read_text(encoding="utf-8")))
    assert used - SET_BY_SCRIPTS <= (GATEWAY | MANAGER | COMPOSE_ONLY).keys()
