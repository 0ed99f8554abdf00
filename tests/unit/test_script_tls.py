"""What scripts/up says of TLS before containers start."""

from pathlib import Path

import pytest
from lib import tls
from lib.console import Problem

INSIDE = {"HOSTLER_TLS_CERTIFICATE": "/tls/cert.pem", "HOSTLER_TLS_KEY": "/tls/key.pem"}


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An .env file of the test's own, with what the scripts read from the shell taken out."""
    for name in ("HOST", "DOMAIN", "HTTPS_PORT", "TLS_CERTIFICATE", "TLS_KEY", "TLS_FOLDER", "TRUSTED_PROXIES"):
        monkeypatch.delenv(f"HOSTLER_{name}", raising=False)
    monkeypatch.delenv("COMPOSE_PROFILES", raising=False)
    monkeypatch.setenv("HOSTLER_ENV_FILE", str(tmp_path / ".env"))
    return tmp_path / ".env"


def say(env: Path, **variables: str) -> None:
    env.write_text("".join(f"{name}={value}\n" for name, value in variables.items()), encoding="utf-8")


def refusal(env: Path, **variables: str) -> str:
    say(env, **variables)
    with pytest.raises(Problem) as caught:
        tls.prepare()
    return str(caught.value)


def test_without_a_word_of_tls_nothing_is_asked_and_nothing_written(env: Path) -> None:
    say(env, HOSTLER_HOST="0.0.0.0")
    tls.prepare()
    assert tls.public_url() == ""
    assert env.read_text(encoding="utf-8") == "HOSTLER_HOST=0.0.0.0\n"


def test_paths_that_the_container_would_not_have_are_told(env: Path, tmp_path: Path) -> None:
    here = str(tmp_path)
    assert "write /tls/NAME" in refusal(env, HOSTLER_TLS_CERTIFICATE="/etc/cert.pem", HOSTLER_TLS_KEY="/etc/key.pem")
    assert "beginning with / or ./" in refusal(env, **INSIDE)
    assert "beginning with / or ./" in refusal(env, HOSTLER_TLS_FOLDER="certs", **INSIDE)
    assert f"no cert.pem in {here}" in refusal(env, HOSTLER_TLS_FOLDER=here, **INSIDE)
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).touch()
    tls.prepare()


def test_with_the_proxy_the_gateway_stays_on_loopback_without_tls_and_believes_the_proxy(env: Path) -> None:
    proxy = {"COMPOSE_PROFILES": "litestream,tls", "HOSTLER_DOMAIN": "llm.example.org"}
    assert "take HOSTLER_HOST out" in refusal(env, HOSTLER_HOST="0.0.0.0", **proxy)
    (env.parent / "cert.pem").touch()
    (env.parent / "key.pem").touch()
    assert "take one of them out" in refusal(env, HOSTLER_TLS_FOLDER=str(env.parent), **INSIDE, **proxy)
    say(env, **proxy)
    tls.prepare()
    assert f"HOSTLER_TRUSTED_PROXIES={tls.DOCKER_NETWORKS}\n" in env.read_text(encoding="utf-8")
    assert tls.public_url() == "https://llm.example.org"
    say(env, HOSTLER_HTTPS_PORT="127.0.0.1:8443", HOSTLER_TRUSTED_PROXIES="10.1.0.0/16", **proxy)
    tls.prepare()
    assert env.read_text(encoding="utf-8").count("HOSTLER_TRUSTED_PROXIES") == 1
    assert tls.public_url() == "https://llm.example.org:8443"
