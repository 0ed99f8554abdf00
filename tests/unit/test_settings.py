"""The gateway's settings, out of an environment."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.settings import SOCKET_PATH_LIMIT, Settings, SettingsError, load

KEY = {"HOSTLER_ADMIN_KEY": "0123456789abcdef"}


def refusal(**variables: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(KEY | {f"HOSTLER_{name}": value for name, value in variables.items()})
    return str(caught.value)


def test_a_key_is_all_it_takes() -> None:
    assert load(KEY) == Settings(admin_key="0123456789abcdef")


def test_without_a_key_the_message_says_where_one_comes_from() -> None:
    for environ in ({}, {"HOSTLER_ADMIN_KEY": ""}, {"HOSTLER_ADMIN_KEY": "  "}):
        with pytest.raises(SettingsError, match=r"scripts/up, which writes one into \.env"):
            load(environ)


def test_a_short_key_is_refused_and_never_shown() -> None:
    with pytest.raises(SettingsError, match="too short") as caught:
        load({"HOSTLER_ADMIN_KEY": "secret123"})
    assert "secret123" not in str(caught.value)


def test_every_kind_of_value_is_read() -> None:
    settings = load(
        KEY
        | {
            "HOSTLER_PORT": " 9000 ",
            "HOSTLER_DATA": "/srv/data",
            "HOSTLER_QUEUE_SECONDS": "1.5",
            "HOSTLER_LOG_LEVEL": "debug",
            "HOSTLER_HOST": "",
            "OTHER": "x",
        }
    )
    assert (settings.port, settings.data, settings.queue_seconds) == (9_000, Path("/srv/data"), 1.5)
    assert (settings.log_level, settings.host) == ("debug", "127.0.0.1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("MAX_BODY_MIB", "0"),
        ("MAX_WAITING", "-5"),
        ("MAX_HEADER_KIB", "1.5"),
        ("GPU_MARGIN_MIB", "-1"),
        ("QUEUE_SECONDS", "0"),
        ("HEADER_SECONDS", "nan"),
        ("HEADER_SECONDS", "inf"),
        ("DRAIN_SECONDS", "1e999"),
        ("STALL_SECONDS", "soon"),
    ],
)
def test_a_value_that_does_not_do_is_refused_by_its_name(name: str, value: str) -> None:
    assert f"HOSTLER_{name}" in refusal(**{name: value})


def test_a_run_folder_too_deep_for_unix_sockets_is_refused_with_what_to_do() -> None:
    assert "choose a shorter one" in refusal(RUN="/" + "x" * 60)
    settings = load(KEY | {"HOSTLER_RUN": "/" + "x" * 30})
    assert len(bytes(settings.engines_folder())) + 40 + len("//engine.sock") <= SOCKET_PATH_LIMIT
    assert settings.manager_socket().name == "manager.sock"


@given(st.dictionaries(st.sampled_from(Settings.__struct_fields__[1:]), st.text(max_size=12)))
def test_any_environment_gives_settings_or_one_sentence(variables: dict[str, str]) -> None:
    try:
        settings = load(KEY | {f"HOSTLER_{name.upper()}": value for name, value in variables.items()})
    except SettingsError as problem:
        assert "HOSTLER_" in str(problem)  # noqa: PT017 - either outcome is fine
    else:
        assert msgspec.structs.asdict(settings)


def test_tls_takes_a_certificate_and_a_key_or_neither() -> None:
    assert "HOSTLER_TLS_KEY is not set" in refusal(TLS_CERTIFICATE="fullchain.pem")
    assert "HOSTLER_TLS_CERTIFICATE is not set" in refusal(TLS_KEY="key.pem")
    settings = load(KEY | {"HOSTLER_TLS_CERTIFICATE": "fullchain.pem", "HOSTLER_TLS_KEY": "key.pem"})
    assert (settings.tls_certificate, settings.tls_key) == (Path("fullchain.pem"), Path("key.pem"))
