"""What somebody can do who has taken over the gateway: run by `python -c` in the gateway's own container.

It knows nothing but the standard library. Orders come as JSON on stdin, answers go as JSON to stdout.
"""

import base64
import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANAGER = "/run/hostler/manager/manager.sock"
SECONDS = 40
PIECE = 65536


def connected() -> socket.socket:
    """A connection to the manager."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SECONDS)
    connection.connect(MANAGER)
    return connection


def put(connection: socket.socket, message: bytes, piece: bytes, pieces: int) -> None:
    """A message, and then a piece again and again; the other side may have enough of it before."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(message)
        for _ in range(pieces):
            connection.sendall(piece)


def answer(connection: socket.socket) -> tuple[int, str]:
    """Status and body once the other side has closed; status 0 where it did so without a word."""
    text = b""
    with connection, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while piece := connection.recv(PIECE):
            text += piece
    head, _, body = text.partition(b"\r\n\r\n")
    return (int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/") else 0), body.decode(errors="replace")


def send(orders: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Each message in a connection of its own; those that are to be waited for are waited for together."""
    connections = []
    for order in orders:
        connection = connected()
        put(connection, base64.b64decode(order["message"]), base64.b64decode(order["piece"]), order["pieces"])
        connections.append(connection if order["half"] else answer(connection))
    return [answer(one) if isinstance(one, socket.socket) else one for one in connections]


def crowd(count: int, least: int) -> int:
    """So many connections at once, that say nothing; how many the manager has closed once it closed `least` of them."""
    waiting: dict[int, socket.socket] = {}
    closed, poll = 0, select.poll()
    for _ in range(count):
        try:
            connection = connected()
        except OSError:
            closed += 1
            continue
        waiting[connection.fileno()] = connection
        poll.register(connection, select.POLLIN)
    while closed < least and (events := poll.poll(SECONDS * 1000)):
        for number, _ in events:
            poll.unregister(number)
            waiting.pop(number).close()
            closed += 1
    for connection in waiting.values():
        connection.close()
    return closed


def freeze(number: int) -> int:
    """Stop the gateway in its tracks, or let it go on; the number of its processes."""
    found = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if entry.read_bytes().split(b"\0")[1:3] == [b"-m", b"gateway"] and entry.parent.name != "1":
                os.kill(int(entry.parent.name), number)
                found += 1
    return found


def main() -> None:
    """Do what stands on stdin."""
    orders = json.load(sys.stdin)
    doing: dict[str, Callable[[Any], object]] = {
        "send": send,
        "crowd": lambda what: crowd(*what),
        "freeze": lambda on: freeze(signal.SIGSTOP if on else signal.SIGCONT),
    }
    json.dump(doing[orders["do"]](orders["what"]), sys.stdout)


if __name__ == "__main__":
    main()
