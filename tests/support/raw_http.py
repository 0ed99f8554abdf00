"""HTTP by hand on a plain socket: requests that no client library would send, and hang-ups at a chosen moment."""

import contextlib
import json
import socket
import ssl
import time
from typing import Any, NamedTuple, Self

SECONDS = 15.0
RECEIVE_BYTES = 65_536


class RawAnswer(NamedTuple):
    """What came back: header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class RawConnection:
    """One connection to 127.0.0.1, with `trust` through TLS; every wait is bounded."""

    def __init__(self, port: int, seconds: float = SECONDS, trust: ssl.SSLContext | None = None) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if trust is not None:
            self._socket = trust.wrap_socket(self._socket, server_hostname="localhost")
        self.received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    def send(self, data: bytes) -> None:
        """Send bytes; a peer that has closed already is no error."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def post(self, path: str, body: object, key: str, *headers: str) -> None:
        """Send a whole JSON request."""
        self.send(post_bytes(path, body, key, *headers))

    def read_until(self, mark: bytes) -> bytes:
        """Everything received so far, once it holds `mark`. Raises AssertionError if the connection ends before."""
        while mark not in self.received:
            piece = self._socket.recv(RECEIVE_BYTES)
            assert piece, f"closed before {mark!r} came; received {self.received[-500:]!r}"
            self.received += piece
        return self.received

    def read_some(self) -> bytes:
        """Wait for the next bytes; none once the peer has closed."""
        piece = self._receive()
        self.received += piece
        return piece

    def read_to_end(self) -> bytes:
        """Everything, once the peer has closed. Raises TimeoutError if it does not."""
        pieces = [self.received]
        while piece := self._receive():
            pieces.append(piece)
        self.received = b"".join(pieces)
        return self.received

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(RECEIVE_BYTES)
        except ConnectionResetError:
            return b""

    def answer(self) -> RawAnswer:
        """The answer, which must have a content-length."""
        head, _, rest = self.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers["content-length"])
        while len(rest) < length:
            piece = self._socket.recv(RECEIVE_BYTES)
            assert piece, f"closed after {len(rest)} of {length} bytes"
            rest += piece
        return RawAnswer(int(first.split()[1]), headers, rest[:length])

    def is_closed(self) -> bool:
        """Whether the peer has ended the connection; what it still sent is thrown away. Raises TimeoutError."""
        while self._receive():
            pass
        return True

    def say_goodbye(self) -> None:
        """TLS's close_notify; what the peer still sends is not read."""
        assert isinstance(self._socket, ssl.SSLSocket)
        with contextlib.suppress(ssl.SSLError):
            self._socket.unwrap()

    def hang_up(self) -> float:
        """Close at once; the wall-clock time of it."""
        at = time.time()
        self._socket.close()
        return at


def post_bytes(path: str, body: object, key: str, *headers: str) -> bytes:
    """A whole JSON request."""
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: hostler", f"authorization: Bearer {key}", *headers]
    lines += ["content-type: application/json", f"content-length: {len(data)}", "", ""]
    return "\r\n".join(lines).encode() + data


def dechunked(body: bytes) -> bytes:
    """A body without its chunked encoding. Raises AssertionError if it is not whole."""
    pieces: list[bytes] = []
    at = 0
    while True:
        line = body.index(b"\r\n", at)
        length = int(body[at:line], 16)
        at = line + 2 + length
        assert body[at : at + 2] == b"\r\n", "a chunk ends with its line"
        if not length:
            return b"".join(pieces)
        pieces.append(body[line + 2 : at])
        at += 2
