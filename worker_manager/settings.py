"""Every setting of the worker manager: one frozen struct, read once from the environment at start.

Each field `x` is the environment variable `HOSTLER_X`; only `hf_token` and `hf_endpoint` keep the model hub's own
names, `HF_TOKEN` and `HF_ENDPOINT`. A value that does not fit raises `SettingsError` with a sentence.
"""

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

HUB_NAMES = {"hf_token": "HF_TOKEN", "hf_endpoint": "HF_ENDPOINT"}
"""Fields whose environment variable is not named after Hostler."""

ENV_NAME_PATTERN = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
POSITIVE = (
    "engine_pids",
    "engine_cache_gib",
    "load_seconds",
    "sleep_seconds",
    "wake_seconds",
    "canary_timeout_seconds",
    "canary_tries",
)
TRUE_WORDS = frozenset({"1", "true", "yes", "on"})
FALSE_WORDS = frozenset({"0", "false", "no", "off"})


class SettingsError(Exception):
    """A setting has a value that can't be used; the message names the variable and says what would do."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How this manager runs. All sizes are in GiB, all times in seconds."""

    launcher: Literal["docker", "process", "auto"] = "auto"
    """How engines are started: `docker`, `process`, or `auto`: Docker where its socket answers, else processes."""
    docker_host: str = "unix:///var/run/docker.sock"
    """Where the Docker Engine listens."""
    instance: str = "hostler"
    """Name of this Hostler; two with different names on one machine leave each other's workers alone."""
    models: Path = Path("models")
    """The models folder: `local/` made by you, `hub/` made by downloads."""
    run: Path = Path("run")
    """Folder of sockets and of the process launcher's state: `manager/`, `engines/`, `units/`, `logs/`."""
    cache: Path = Path("data/cache")
    """Folder of the engines' compile caches, one subfolder per image."""
    engine_image: str = "vllm/vllm-openai:v0.32.0"
    """The engine image that is used where an endpoint names none."""
    engine_images: tuple[str, ...] = ()
    """Further engine images that an endpoint may name, separated by commas."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """What engines compute on; `auto`: the GPUs if NVML shows any, else the CPUs."""
    vllm_command: tuple[str, ...] = ("vllm",)
    """The process launcher's engine command, split as a shell would; `serve MODEL ...` is appended."""
    engine_env: dict[str, str] = {}
    """Further environment variables for every engine: words `NAME=VALUE`, split as a shell would."""
    engine_memory_gib: float = 0
    """Memory limit of one engine's container; 0: nine tenths of the machine's memory, so that it never takes all."""
    engine_shm_gib: float = 8
    """Size of `/dev/shm` of an engine with GPUs; one without gets at most 1."""
    engine_pids: int = 4096
    """Most processes and threads of one engine's container."""
    engine_cache_gib: float = 32
    """Largest compile cache of one image and model; an engine that writes more is ended, and its cache dropped."""
    engine_cpus: float = 0
    """Most CPUs one engine's container may use; 0: all."""
    cpu_kv_cache_gib: float = 1
    """Memory for the KV cache of an engine that runs on the CPUs."""
    load_seconds: float = 1800
    """Longest time from an engine's start until it serves; after that it is stopped and counts as failed."""
    stop_seconds: float = 30
    """How long an engine may finish its requests after it was told to stop, before it is killed."""
    sleep: bool = True
    """Start engines on GPUs so that they can sleep (vLLM's sleep mode); whether one does is the gateway's decision."""
    sleep_seconds: float = 180
    """Longest time for an engine to fall asleep; the first time it copies its weights into main memory."""
    wake_seconds: float = 300
    """Longest time for an engine to wake until it answers as before; from level 2 it reads its weights again."""
    prefetch: bool = True
    """Read a model's weights into the page cache while its worker still waits for others to make room."""
    prefetch_reserve_gib: float = 4
    """Main memory that reading ahead leaves alone."""
    canary_seconds: float = 60
    """How often a ready engine without traffic is asked for one token; 0: never."""
    canary_timeout_seconds: float = 30
    """Longest time for that token."""
    canary_tries: int = 3
    """So many such questions in a row without an answer, and the engine counts as hung."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""
    log_format: Literal["json", "console"] = "json"
    """How log lines look."""
    hf_token: str = ""
    """The model hub's token (`HF_TOKEN`), for gated models; only download jobs see it."""
    hf_endpoint: str = ""
    """Address of the model hub (`HF_ENDPOINT`); empty: the hub's own."""
    offline: bool = False
    """Refuse all downloads."""
    disk_reserve_gib: float = 5
    """Disk space that a download must leave free."""

    @property
    def manager_socket(self) -> Path:
        """The manager's own socket, absolute."""
        return self.run / "manager" / "manager.sock"

    @property
    def engines(self) -> Path:
        """The folder of the engines' socket folders, absolute."""
        return self.run / "engines"

    @property
    def allowed_images(self) -> tuple[str, ...]:
        """The allow-list: the default image first."""
        return tuple(dict.fromkeys((self.engine_image, *self.engine_images)))


def environment_name(field: str) -> str:
    """The environment variable that sets this field."""
    return HUB_NAMES.get(field, f"HOSTLER_{field.upper()}")


def load(environ: Mapping[str, str]) -> Settings:
    """Settings from an environment; what is absent or empty keeps its default. Raises `SettingsError`."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        name = environment_name(field.name)
        text = environ.get(name, "").strip()
        values[field.name] = _read(name, text, field.type) if text else field.default
        if not text and field.default_factory is not msgspec.NODEFAULT:
            values[field.name] = field.default_factory()
    for folder in ("models", "run", "cache"):
        values[folder] = Path(values[folder]).absolute()
    settings = Settings(**values)
    _check(settings)
    return settings


def _read(name: str, text: str, kind: Any) -> Any:
    """One variable's text as the field's type."""
    if kind is bool:
        return _read_flag(name, text)
    if kind in (int, float):
        return _read_number(name, text, kind)
    if kind is Path:
        return Path(text).expanduser()
    if kind == dict[str, str]:
        return _read_environment(name, text)
    if kind == tuple[str, ...]:
        return _read_words(name, text)
    try:
        return msgspec.convert(text, kind)
    except msgspec.ValidationError:
        choices = ", ".join(getattr(kind, "__args__", ()))
        raise SettingsError(f"{name} is {text!r}; it must be one of: {choices}") from None


def _read_flag(name: str, text: str) -> bool:
    if text.lower() not in TRUE_WORDS | FALSE_WORDS:
        raise SettingsError(f"{name} is {text!r}; it must be 1 or 0")
    return text.lower() in TRUE_WORDS


def _read_number(name: str, text: str, kind: type[int] | type[float]) -> float:
    try:
        number = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise SettingsError(f"{name} is {text!r}; it must be {what}") from None
    if not math.isfinite(number) or number < 0:
        raise SettingsError(f"{name} is {text!r}; it must not be negative or infinite")
    return number


def _read_words(name: str, text: str) -> tuple[str, ...]:
    """Words of a command, or names between commas."""
    if name == environment_name("engine_images"):
        return tuple(word for word in (part.strip() for part in text.split(",")) if word)
    return tuple(_split(name, text))


def _read_environment(name: str, text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in _split(name, text):
        key, equals, value = word.partition("=")
        if not equals or not ENV_NAME_PATTERN.match(key):
            raise SettingsError(f"{name} holds {word!r}; every word must look like NAME=VALUE")
        pairs[key] = value
    return pairs


def _split(name: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise SettingsError(f"{name} can't be split into words ({error}); check its quotes") from None


def _check(settings: Settings) -> None:
    """The rules between values. Raises `SettingsError`."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,30}", settings.instance):
        raise SettingsError(
            f"HOSTLER_INSTANCE is {settings.instance!r}; it must be 1 to 31 lower-case letters, digits or dashes"
        )
    for field in POSITIVE:
        if getattr(settings, field) == 0:
            raise SettingsError(f"{environment_name(field)} must be larger than 0")
    if not settings.vllm_command:
        raise SettingsError("HOSTLER_VLLM_COMMAND is empty; it must name the engine's program, such as `vllm`")
