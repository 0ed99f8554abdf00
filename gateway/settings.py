"""Every setting of the gateway: one frozen struct, read once from the environment. Nothing else reads `os.environ`."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from gateway.addresses import is_network
from gateway.prices import BILLION
from gateway.sign_in import is_safe, roles_of
from gateway.types import Allowable

PREFIX = "HOSTLER_"
SOCKET_PATH_LIMIT = 107
"""Bytes that fit into a Unix socket's address on Linux (sun_path less its final zero)."""


POSITIVE = (
    "max_body_mib",
    "max_header_kib",
    "max_waiting",
    "sign_ins_per_minute",
    "usage_days",
    "backups_kept",
    "capture_days",
    "capture_kib",
    "capture_mib",
    "max_n",
    "max_schema_kib",
    "max_json_depth",
    "max_media",
)


class SettingsError(ValueError):
    """A setting is missing or unusable; the message names it and says what to write."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway's settings. The variable of a field is its name in capitals behind HOSTLER_."""

    admin_key: str
    """The first admin key. `scripts/up` writes one into .env. At least 16 characters."""
    host: str = "127.0.0.1"
    """Address to listen on. Inside the container compose sets 0.0.0.0 and publishes on the host's loopback only."""
    port: int = 8000
    """TCP port to listen on."""
    tls_certificate: Path | None = None
    """PEM file of the certificate that is shown to clients, its chain behind it; not set: HTTP without TLS."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key, without a passphrase."""
    data: Path = Path("data")
    """Folder of the database."""
    backups: Path = Path("backups")
    """Folder of the database's backups; on another disk it outlives this one."""
    backups_kept: int = 7
    """How many backups are kept there; the oldest go."""
    models: Path = Path("models")
    """Models folder: local/NAME is yours, hub/ORG/NAME/COMMIT comes from downloads. Read, never written."""
    run: Path = Path("run")
    """Folder of the Unix sockets: manager/manager.sock and engines/WORKER/engine.sock."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line that is written."""
    log_format: Literal["json", "console"] = "json"
    """json for machines, console for a terminal."""
    max_body_mib: int = 64
    """Largest request body, MiB (images and audio travel in it)."""
    max_header_kib: int = 64
    """Largest request header, KiB in all."""
    header_seconds: float = 10
    """Seconds within which a request's header must be complete."""
    body_seconds: float = 60
    """Seconds of silence after which a half-sent request body is given up."""
    client_stall_seconds: float = 300
    """Seconds after which a client that takes nothing of its answer is cut off, and its worker is free again."""
    keep_alive_seconds: float = 75
    """Seconds an idle client connection is kept."""
    drain_seconds: float = 30
    """At stop: seconds that running requests have to finish."""
    queue_seconds: float = 600
    """Seconds a request may wait for a worker before 503; `x-hostler-timeout` shortens it."""
    max_waiting: int = 1000
    """Requests that may wait for one endpoint; one more is answered 429."""
    stream_grace_seconds: float = 3
    """Seconds after which a waiting stream gets its headers and heartbeats, instead of silence."""
    heartbeat_seconds: float = 10
    """Seconds between heartbeats (SSE comments) to a stream that waits for its worker."""
    connect_seconds: float = 5
    """Seconds to connect to an engine's socket."""
    first_byte_seconds: float = 600
    """Seconds an engine has for the first byte of its answer before 504."""
    stall_seconds: float = 300
    """Seconds of silence after which a running stream counts as broken."""
    allow: str = ""
    """What requests may ask of engines although it endangers them, names with commas between (docs/configure.md)."""
    max_n: int = 128
    """Most completions of one prompt (`n`, `best_of`)."""
    max_logprobs: int = 20
    """Most alternatives to each token whose probabilities are told (`logprobs`, `top_logprobs`)."""
    max_tokens: int = 0
    """Most tokens of an answer that a request may ask for; 0: as many as fit the engine's context."""
    max_schema_kib: int = 256
    """Largest JSON schema, list of tools, grammar or expression in a request, KiB."""
    max_json_depth: int = 64
    """Most arrays and objects of a body that may stand in each other."""
    max_media: int = 64
    """Most images, sounds, videos and files of one request."""
    gpu_margin_mib: int = 512
    """MiB of each GPU that are never promised to a worker."""
    sign_ins_per_minute: int = 60
    """Sign-ins that one client address may fail in a minute; more are answered 429."""
    trusted_proxies: str = ""
    """Addresses and networks, commas between, of proxies whose X-Forwarded-For tells the client's address."""
    oidc_issuer: str = ""
    """Address of the OpenID Connect issuer whose sign-in tokens open like keys; not set: none do."""
    oidc_audience: str = ""
    """What a token's `aud` must name: the client id that the issuer knows this Hostler by."""
    oidc_claim: str = "groups"
    """The claim of a token that names a person's roles; with dots a path, such as realm_access.roles."""
    oidc_roles: str = ""
    """Scopes of each role: `admins=admin,ml-team=inference+endpoints`; `*` is everybody who is signed in."""
    capture_days: int = 7
    """Days for which captured requests are kept."""
    capture_kib: int = 64
    """Most characters of a captured prompt, and of an answer, in units of 1024."""
    capture_mib: int = 256
    """Most characters of all captured requests, in units of 1024 times 1024; the oldest go first."""
    usage_days: int = 90
    """Days for which each request's usage is kept; sums by day, key and endpoint stay."""
    cost_unit: str = ""
    """What prices are in (EUR, USD, credits): shown beside costs, never computed with."""
    kwh_price: float | None = None
    """What a kilowatt hour of the GPUs costs, in the unit of prices; not set: it is counted and not priced."""

    sleep_memory_mib: int | None = None
    """MiB of the machine's memory that sleeping engines may take together; not set: half of it. 0: none."""

    def proxies(self) -> list[str]:
        """The trusted proxies, each an address or a network."""
        return [proxy.strip() for proxy in self.trusted_proxies.split(",") if proxy.strip()]

    def allowed(self) -> frozenset[Allowable]:
        """What is allowed for all endpoints. Raises ValueError for a name that is none."""
        return frozenset(Allowable(name.strip()) for name in self.allow.split(",") if name.strip())

    def manager_socket(self) -> Path:
        """Where the worker manager listens."""
        return self.run / "manager" / "manager.sock"

    def engines_folder(self) -> Path:
        """Folder that holds one folder a worker, each with the engine's socket."""
        return self.run / "engines"


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings out of an environment. An empty variable counts as unset.

    Raises SettingsError for a missing key, a value of the wrong kind, or one out of range.
    """
    raw = {name: environ.get(PREFIX + name.upper(), "").strip() for name in Settings.__struct_fields__}
    given = {name: value for name, value in raw.items() if value}
    if "admin_key" not in given:
        raise SettingsError(
            "HOSTLER_ADMIN_KEY is not set: run scripts/up, which writes one into .env, or set it yourself "
            "to 16 or more random characters"
        )
    values: dict[str, object] = {}
    for field in msgspec.structs.fields(Settings):
        if field.name in given:
            values[field.name] = _convert(field.name, given[field.name], field.type)
    settings = Settings(**values)  # type: ignore[arg-type]  # each value was converted to its field's type above
    _check(settings)
    return settings


def _convert(name: str, text: str, kind: object) -> object:
    try:
        return msgspec.convert(text, kind, strict=False, dec_hook=lambda target, value: target(value))
    except (msgspec.ValidationError, ValueError) as problem:
        shown = "" if name == "admin_key" else f" {text!r}"
        raise SettingsError(f"{PREFIX}{name.upper()}{shown} cannot be used: {problem}") from None


def _check(settings: Settings) -> None:
    def require(name: str, fine: bool, what: str) -> None:  # noqa: FBT001 - the condition is the point
        if not fine:
            raise SettingsError(f"{PREFIX}{name.upper()} {what}")

    require("admin_key", len(settings.admin_key) >= 16, "is too short: use 16 or more random characters")  # noqa: PLR2004
    require("admin_key", settings.admin_key.isascii() and settings.admin_key.isprintable(), "must be plain ASCII")
    require("port", 0 <= settings.port < 65536, "must lie between 0 and 65535")  # noqa: PLR2004
    for name, other in (("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")):
        whole = getattr(settings, name) is not None or getattr(settings, other) is None
        require(name, whole, f"is not set, but {PREFIX}{other.upper()} is: TLS takes both, name both files or none")
    for name in POSITIVE:
        require(name, getattr(settings, name) > 0, "must be greater than 0")
    for field in msgspec.structs.fields(Settings):
        if field.name.endswith("_seconds"):
            seconds = getattr(settings, field.name)
            require(field.name, 0 < seconds < math.inf, "must be a number of seconds greater than 0")
    require("sleep_memory_mib", (settings.sleep_memory_mib or 0) >= 0, "must not be negative")
    require("kwh_price", 0 <= (settings.kwh_price or 0) <= BILLION, "must not be negative")
    require("gpu_margin_mib", settings.gpu_margin_mib >= 0, "must not be negative")
    require("max_logprobs", settings.max_logprobs >= 0, "must not be negative")
    require("max_tokens", settings.max_tokens >= 0, "must not be negative")
    try:
        settings.allowed()
    except ValueError as problem:
        raise SettingsError(f"HOSTLER_ALLOW: {problem}; there are {', '.join(Allowable)}") from None
    for proxy in settings.proxies():
        require("trusted_proxies", is_network(proxy), f"names {proxy!r}, which is neither an address nor a network")
    _check_people(settings, require)
    longest = len(bytes(settings.engines_folder().absolute())) + len("/" + "x" * 40 + "/engine.sock")
    require(
        "run",
        longest <= SOCKET_PATH_LIMIT,
        f"is too deep a folder for Unix sockets ({longest} bytes, at most "
        f"{SOCKET_PATH_LIMIT}): choose a shorter one, such as /run/hostler",
    )


def _check_people(settings: Settings, require: Callable[[str, bool, str], None]) -> None:
    if not settings.oidc_issuer:
        return
    require("oidc_issuer", is_safe(settings.oidc_issuer), "must be an https address (http only on this machine)")
    require("oidc_audience", bool(settings.oidc_audience), "is not set: tokens for other programs would open as well")
    require("oidc_claim", bool(settings.oidc_claim), "is not set")
    require("oidc_roles", bool(settings.oidc_roles), "is not set: nobody who signs in could do anything")
    try:
        roles_of(settings.oidc_roles)
    except ValueError as problem:
        raise SettingsError(f"{PREFIX}OIDC_ROLES cannot be used: {problem}") from None
