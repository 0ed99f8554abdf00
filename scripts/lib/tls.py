"""What scripts/up sees to before a Hostler in containers starts with TLS; the gateway checks what the files hold."""

from pathlib import Path

from lib import address, compose, dotenv
from lib.console import ROOT, Problem

IN_CONTAINER = "/tls/"
PROFILE = "tls"
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
DOCKER_NETWORKS = "172.16.0.0/12,192.168.0.0/16"
"""Where Docker's own networks lie unless its daemon is told otherwise: one of them is the proxy's."""


def prepare() -> None:
    """Check what is said of TLS, and trust the proxy's word of addresses. Raises Problem."""
    settings = dotenv.settings()
    if address.secure():
        _check_files(settings)
    if PROFILE not in compose.profiles():
        return
    if address.secure():
        raise Problem(
            "COMPOSE_PROFILES has tls, the proxy that speaks TLS in front of the gateway, and HOSTLER_TLS_CERTIFICATE "
            "is set, with which the gateway does so itself: take one of them out (docs/operate.md says which to choose)"
        )
    if address.host() not in LOOPBACK:
        raise Problem(
            f"COMPOSE_PROFILES has tls, but HOSTLER_HOST={address.host()} opens the gateway without TLS beside it: "
            "take HOSTLER_HOST out; the proxy listens for everybody"
        )
    dotenv.add_missing("HOSTLER_TRUSTED_PROXIES", DOCKER_NETWORKS)


def public_url() -> str:
    """Where others reach the proxy; empty where there is none."""
    if PROFILE not in compose.profiles():
        return ""
    settings = dotenv.settings()
    port = (settings.get("HOSTLER_HTTPS_PORT") or "443").rpartition(":")[2]
    return f"https://{settings.get('HOSTLER_DOMAIN') or 'localhost'}" + ("" if port == "443" else f":{port}")


def _check_files(settings: dict[str, str]) -> None:
    """Raise Problem where the gateway's container would not find its certificate."""
    folder = settings.get("HOSTLER_TLS_FOLDER") or ""
    for name in ("HOSTLER_TLS_CERTIFICATE", "HOSTLER_TLS_KEY"):
        path = settings.get(name) or ""
        if not path.startswith(IN_CONTAINER):
            raise Problem(
                f"{name}={path} is no path in the gateway's container: write {IN_CONTAINER}NAME, and "
                "HOSTLER_TLS_FOLDER=FOLDER for the folder here in which NAME lies"
            )
        if not folder.startswith(("/", "./", "../")):
            raise Problem(
                f"HOSTLER_TLS_FOLDER={folder} does not say which folder here is {IN_CONTAINER}: write its path, "
                "beginning with / or ./"
            )
        file = Path(path.removeprefix(IN_CONTAINER))
        if not (ROOT / folder / file).exists():
            raise Problem(f"{name}: there is no {file} in {folder} (HOSTLER_TLS_FOLDER)")
