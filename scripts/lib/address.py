"""The gateway from outside: its address, whether the port is free, and a small HTTP client."""

import errno
import json
import socket
import ssl
import urllib.error
import urllib.request
from typing import Any

from lib import dotenv
from lib.console import Problem

ANY = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


def host() -> str:
    """Where the gateway is published."""
    return dotenv.settings().get("HOSTLER_HOST") or "127.0.0.1"


def port() -> int:
    """The gateway's TCP port. Raises Problem where HOSTLER_PORT is no number."""
    text = dotenv.settings().get("HOSTLER_PORT") or "8000"
    if not text.isdigit() or not 0 < int(text) < 65536:  # noqa: PLR2004 - all there are
        raise Problem(f"HOSTLER_PORT={text} is not a port: write a number from 1 to 65535")
    return int(text)


def secure() -> bool:
    """Whether the gateway itself speaks TLS."""
    return bool(dotenv.settings().get("HOSTLER_TLS_CERTIFICATE"))


def url() -> str:
    """The address as a client on this machine writes it."""
    shown = ANY.get(host(), host())
    shown = f"[{shown}]" if ":" in shown and not shown.startswith("[") else shown
    return f"{'https' if secure() else 'http'}://{shown}:{port()}"


def check_free() -> None:
    """Raise Problem if another program listens on the port."""
    family = socket.AF_INET6 if ":" in host() else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host(), port()))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Problem(
                    f"port {port()} of {host()} is taken by another program. Stop that program, or choose another "
                    f"port for Hostler: HOSTLER_PORT={port() + 1} scripts/up (or the same line in .env)"
                ) from None
            raise Problem(f"cannot listen on {host()}:{port()}: {error.strerror}") from None


def call(method: str, path: str, body: dict[str, Any] | None = None, seconds: float = 10) -> tuple[int, Any]:
    """Status and decoded body of one request with the admin key; status 0 where nobody answers."""
    request = urllib.request.Request(url() + path, method=method)  # noqa: S310 - our own address
    request.add_header("Authorization", f"Bearer {dotenv.settings().get(dotenv.KEY, '')}")
    data = None
    if body is not None:
        request.add_header("Content-Type", "application/json")
        data = json.dumps(body).encode()
    # straight to this machine, past any proxy the environment names; its certificate has the name others use
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=ssl._create_unverified_context()),  # noqa: S323, SLF001 - as the line above
    )
    try:
        with opener.open(request, data=data, timeout=seconds) as answered:
            return answered.status, _decode(answered.read())
    except urllib.error.HTTPError as error:
        return error.code, _decode(error.read())
    except (OSError, TimeoutError):
        return 0, None


def _decode(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")


def message(body: Any) -> str:
    """What an error body says."""
    try:
        return str(body["error"]["message"])
    except (KeyError, TypeError):
        return str(body)[:300]
