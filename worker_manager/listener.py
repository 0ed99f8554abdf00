"""The manager's own Unix socket: made for the gateway's group alone, and never taken from a manager that lives."""

import os
import socket
from pathlib import Path

MAX_PATH_BYTES = 107
"""Linux's limit for the path of a Unix socket."""
LONGEST_ENGINE_PATH = len("/") + 40 + len("/engine.sock")
CONNECT_SECONDS = 2.0
FOLDER_MODE = 0o770
SOCKET_MODE = 0o660


class ListenError(Exception):
    """The socket can't be had; the message says why and what to do."""


def check_lengths(manager_socket: Path, engines: Path) -> None:
    """Raises `ListenError` where a socket's path would be too long."""
    longest = max(len(os.fsencode(manager_socket)), len(os.fsencode(engines)) + LONGEST_ENGINE_PATH)
    if longest > MAX_PATH_BYTES:
        raise ListenError(
            f"the run folder's path is too long for Unix sockets ({longest} of at most {MAX_PATH_BYTES} bytes): "
            "set HOSTLER_RUN to a shorter one, such as /tmp/hostler"
        )


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`; one left behind by a dead manager is replaced. Raises `ListenError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _restrict(path.parent)
        if path.exists():
            _remove_stale(path)
        return _bind(path)
    except OSError as error:
        raise ListenError(f"can't listen on {path}: {error}; check HOSTLER_RUN and its owner") from error


def _restrict(folder: Path) -> None:
    """Group access only; a folder that belongs to another user is as its owner made it."""
    if folder.stat().st_uid == os.geteuid():
        folder.chmod(FOLDER_MODE)


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(CONNECT_SECONDS)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return
    raise ListenError(f"another worker manager answers on {path}; stop it first, or set HOSTLER_RUN")


def _bind(path: Path) -> socket.socket:
    """Bound with its final permissions: there is no moment at which others could connect."""
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o777 & ~SOCKET_MODE)
    try:
        listener.bind(str(path))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener
