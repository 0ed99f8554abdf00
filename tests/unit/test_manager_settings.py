from pathlib import Path

import msgspec
import pytest

from worker_manager.settings import Settings, SettingsError, environment_name, load


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = load({})
    assert settings.engine_image == "vllm/vllm-openai:v0.32.0"
    assert settings.run == Path("run").absolute()
    assert settings.engine_env == {}


def test_every_field_is_read_from_the_environment() -> None:
    texts = {
        "launcher": "docker",
        "device": "cpu",
        "log_level": "debug",
        "log_format": "console",
        "offline": "1",
        "sleep": "0",
        "prefetch": "0",
        "engine_env": "A=1",
        "instance": "other",
    }
    environ = {environment_name(name): texts.get(name, "7") for name in Settings.__struct_fields__}
    settings, default = load(environ), load({})
    same = [name for name in Settings.__struct_fields__ if getattr(settings, name) == getattr(default, name)]
    assert same == []


def test_an_empty_variable_keeps_the_default() -> None:
    assert load({"HOSTLER_ENGINE_PIDS": ""}).engine_pids == load({}).engine_pids


def test_words_are_split_as_a_shell_would() -> None:
    settings = load({"HOSTLER_ENGINE_ENV": "A=1 B='two words'", "HOSTLER_VLLM_COMMAND": "python -m 'my engine'"})
    assert settings.engine_env == {"A": "1", "B": "two words"}
    assert settings.vllm_command == ("python", "-m", "my engine")


def test_the_default_image_is_always_allowed() -> None:
    settings = load({"HOSTLER_ENGINE_IMAGE": "a:1", "HOSTLER_ENGINE_IMAGES": "b:1, a:1,"})
    assert settings.allowed_images == ("a:1", "b:1")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("HOSTLER_LAUNCHER", "podman", "one of: docker, process, auto"),
        ("HOSTLER_ENGINE_PIDS", "many", "whole number"),
        ("HOSTLER_ENGINE_PIDS", "1.5", "whole number"),
        ("HOSTLER_LOAD_SECONDS", "nan", "infinite"),
        ("HOSTLER_STOP_SECONDS", "-1", "negative"),
        ("HOSTLER_OFFLINE", "perhaps", "1 or 0"),
        ("HOSTLER_ENGINE_ENV", "NOVALUE", "NAME=VALUE"),
        ("HOSTLER_ENGINE_ENV", "A='", "quotes"),
        ("HOSTLER_INSTANCE", "Not Good", "lower-case"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_would_do(name: str, value: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence) as caught:
        load({name: value})
    assert name in str(caught.value)


def test_settings_do_not_change() -> None:
    assert Settings.__struct_config__.frozen
    assert isinstance(load({}), msgspec.Struct)
