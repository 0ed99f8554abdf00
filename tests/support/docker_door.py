"""A door in front of the Docker Engine: it can be shut, hang, answer with errors, and tell what passes through it."""

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from typing import BinaryIO

from tests.support.docker_machine import DOCKER_HOST

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
NAMES = re.compile(r"/(containers|images)/(?!(?:json|create)\b)(.+?)(/(?:json|start|stop|kill|logs|top))?$")
REFUSAL = b'{"message": "the Docker Engine is broken, as ordered"}'
ERROR = (
    b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(REFUSAL)
) + REFUSAL


class Fault(Enum):
    """What is wrong with the Docker Engine."""

    NONE = auto()
    AWAY = auto()
    """Nobody listens, and every connection is cut."""
    HANGS = auto()
    """Nothing passes in either direction; all that was sent is delivered when it is over."""
    FAILS = auto()
    """Every request is answered with 500."""


class Moment(Enum):
    """Of a call: when it is to be interrupted."""

    BEFORE = "before it reaches Docker"
    AFTER = "after Docker did it, before the answer"


class DockerDoor:
    """A Unix socket that passes on what it gets. Threads only: it serves processes of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[str] = []
        """Every request so far: `POST /containers/{name}/start`."""
        self.interrupt: Callable[[str, Moment], bool] = lambda _call, _moment: False
        """Asked at both moments of every call; where it says yes the call gets no answer and its connection is cut."""
        self._free = threading.Event()
        self._free.set()
        self._fails = False
        self._open: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.set(Fault.NONE)

    @property
    def host(self) -> str:
        """For HOSTLER_DOCKER_HOST."""
        return f"unix://{self.path}"

    def set(self, fault: Fault) -> None:
        """Break it in this way, or mend it."""
        self._fails = fault is Fault.FAILS
        if fault is Fault.HANGS:
            self._free.clear()
        else:
            self._free.set()
        if fault is Fault.AWAY:
            self.close()
        elif self._listener is None:
            self._listen()

    def close(self) -> None:
        """Cut everything."""
        self._free.set()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.path.unlink(missing_ok=True)
        for each in self._open:
            cut(each)
        self._open.clear()

    def _listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                docker = socket.socket(socket.AF_UNIX)
                docker.connect(DOCKER_HOST.removeprefix("unix://"))
                self._open += [client, docker]
                passage = Passage(self, client, docker)
                for direction in (passage.requests, passage.answers):
                    threading.Thread(target=direction, daemon=True).start()

    def wait_until_free(self) -> None:
        """Returns when it does not hang."""
        self._free.wait()

    @property
    def fails(self) -> bool:
        """Whether requests are answered with 500."""
        return self._fails


class Passage:
    """One connection through the door. Docker's clients send no request before they have the last one's answer."""

    def __init__(self, door: DockerDoor, client: socket.socket, docker: socket.socket) -> None:
        self._door, self._client, self._docker = door, client, docker
        self._call = ""
        """The request whose answer has not begun."""

    def requests(self) -> None:
        """From the client to Docker, whole requests at a time."""
        try:
            with contextlib.suppress(OSError), self._client.makefile("rb") as stream:
                while head := read_head(stream):
                    whole = head + stream.read(length_of(head))
                    self._door.wait_until_free()
                    self._pass(named(head), whole)
        finally:
            cut(self._client)
            cut(self._docker)

    def _pass(self, call: str, whole: bytes) -> None:
        if self._door.fails:
            self._client.sendall(ERROR)
            return
        self._door.calls.append(call)
        if self._door.interrupt(call, Moment.BEFORE):
            raise ConnectionAbortedError
        self._call = call
        self._docker.sendall(whole)

    def answers(self) -> None:
        """From Docker to the client, as it comes."""
        with contextlib.suppress(OSError):
            while data := self._docker.recv(65_536):
                self._door.wait_until_free()
                call, self._call = self._call, ""
                if call and self._door.interrupt(call, Moment.AFTER):
                    break
                self._client.sendall(data)
        cut(self._client)
        cut(self._docker)


def read_head(stream: BinaryIO) -> bytes:
    """A request up to its empty line; empty at the end of the connection."""
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def length_of(head: bytes) -> int:
    """Bytes of a request's body; the SDK sends none in chunks."""
    assert not CHUNKED.search(head), head
    found = CONTENT_LENGTH.search(head)
    return int(found.group(1)) if found else 0


def named(head: bytes) -> str:
    """A request without version, query and names: `GET /containers/{name}/json`."""
    method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
    path = re.sub(r"^/v[\d.]+", "", target.partition("?")[0])
    return f"{method} " + NAMES.sub(r"/\1/{name}\3", path)


def cut(end: socket.socket) -> None:
    """Shut a socket down and close it, whatever it is in the middle of."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
