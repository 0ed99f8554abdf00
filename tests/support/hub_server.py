"""A small model hub for tests: real HTTP, the routes that huggingface_hub calls, and faults on demand.

In a test:          with HubServer([Repository("org/tiny", files)]) as hub: ... HF_ENDPOINT=hub.url
As a process:       python -m tests.support.hub_server FOLDER [--host H] [--port P]
                    serves each FOLDER/ORG/NAME as a repository and prints its address as the first line
"""

import argparse
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

LARGE_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pth")
"""Files that the hub keeps in LFS, and so knows the SHA-256 of."""
CHUNK_BYTES = 64 * 1024
INFO = re.compile(r"^/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?$")
RESOLVE = re.compile(r"^/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
CONTENT = re.compile(r"^/content/([^/]+/[^/]+)/(.+)$")
"""Where large files come from when they come from another host, as those of the real hub do."""


@dataclass
class Repository:
    """One model repository with one commit, whose name follows from its content."""

    name: str
    files: dict[str, bytes]
    token: str | None = None
    """If set, files are given only to requests with this token; the listing is open, as on the real hub."""
    revisions: tuple[str, ...] = ("main",)
    listed_sha256: dict[str, str] = field(default_factory=dict)
    """Hashes to list instead of the true ones."""

    @property
    def commit(self) -> str:
        """40 hexadecimal digits."""
        digest = hashlib.sha1(self.name.encode(), usedforsecurity=False)
        for path in sorted(self.files):
            digest.update(path.encode() + self.files[path])
        return digest.hexdigest()

    def knows(self, revision: str | None) -> bool:
        """Whether this is a branch, a tag or the commit; None stands for the default branch."""
        return revision is None or revision in (*self.revisions, self.commit)

    def sibling(self, path: str) -> dict[str, object]:
        """One file as `GET /api/models/...?blobs=true` lists it."""
        content = self.files[path]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        listed: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": blob}
        if path.endswith(LARGE_SUFFIXES):
            listed["lfs"] = {"size": len(content), "sha256": self.sha256(path), "pointerSize": 134}
        return listed

    def sha256(self, path: str) -> str:
        """The hash that the hub claims for a file."""
        return self.listed_sha256.get(path) or hashlib.sha256(self.files[path]).hexdigest()


@dataclass(frozen=True)
class Served:
    """One answered request for a file; `start` is the first byte asked for, `count` the bytes that went out."""

    method: str
    path: str
    start: int
    has_range: bool
    count: int
    has_token: bool = False


@dataclass
class Faults:
    """What goes wrong, until it is taken back."""

    cut_after_bytes: int | None = None
    """Break each file's transfer off after this many bytes of an answer."""
    cuts_left: int = 1_000_000
    hold_after_bytes: int | None = None
    """Send this many bytes of a file, set `held`, and go on only after `release` is set."""
    ignore_range: bool = False
    redirect_large: bool = False
    """Send requests for large files on to another host name."""
    status: int | None = None
    """Answer every request for a file with this status."""


class HubServer:
    """Serves repositories on a port of its own until the `with` block ends."""

    def __init__(self, repositories: Iterable[Repository], host: str = "127.0.0.1", port: int = 0) -> None:
        self.repositories = {repository.name: repository for repository in repositories}
        self.faults = Faults()
        self.held = threading.Event()
        self.release = threading.Event()
        self._served: list[Served] = []
        self._lock = threading.Lock()
        self._server = _Server((host, port), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self.content_url = f"http://localhost:{self._server.server_address[1]}/content"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)

    def note(self, served: Served) -> None:
        """Keep count of an answer."""
        with self._lock:
            self._served.append(served)

    def served(self, path: str = "") -> list[Served]:
        """The GET answers so far for files whose path ends like this, in order."""
        with self._lock:
            return [one for one in self._served if one.method == "GET" and one.path.endswith(path)]

    def bytes_served(self, path: str = "") -> int:
        """Bytes of such files that went out."""
        return sum(one.count for one in self.served(path))

    def take_cut(self) -> bool:
        """Whether this answer is one of those to break off."""
        with self._lock:
            self.faults.cuts_left -= 1
            return self.faults.cuts_left >= 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    hub: HubServer

    def handle_error(self, _request: object, _client_address: object) -> None:
        """Say nothing: clients that are killed in the middle are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: _Server

    def log_message(self, *_args: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        path = urlsplit(self.path).path
        if found := RESOLVE.match(path):
            name, revision, file = (unquote(part) for part in found.groups())
            self._file(name, revision, file)
        elif found := CONTENT.match(path):
            name, file = (unquote(part) for part in found.groups())
            self._content(self.server.hub.repositories[name], file)
        elif found := INFO.match(path):
            name, quoted = found.groups()
            self._info(unquote(name), unquote(quoted) if quoted else None)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", "Not found")

    def _repository(self, name: str, revision: str | None) -> Repository | None:
        repository = self.server.hub.repositories.get(name)
        if repository is None:
            # as the real hub does: who may not see a repository is not told whether it exists
            self._refuse(HTTPStatus.UNAUTHORIZED, "RepoNotFound", "Repository not found")
            return None
        if not repository.knows(revision):
            self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository

    def _info(self, name: str, revision: str | None) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        siblings = [repository.sibling(path) for path in sorted(repository.files)]
        gated = "auto" if repository.token else False
        body = {"id": name, "sha": repository.commit, "private": False, "gated": gated, "siblings": siblings}
        self._answer(HTTPStatus.OK, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, path: str) -> None:
        hub, repository = self.server.hub, self._repository(name, revision)
        if repository is None:
            return
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            self._refuse(HTTPStatus.FORBIDDEN, "GatedRepo", f"Access to model {name} is restricted")
        elif path not in repository.files:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
        elif hub.faults.status is not None:
            self._refuse(HTTPStatus(hub.faults.status), "", "fault")
        elif hub.faults.redirect_large and path.endswith(LARGE_SUFFIXES):
            self._answer(HTTPStatus.FOUND, b"", {"Location": f"{hub.content_url}/{name}/{path}"})
        else:
            self._content(repository, path)

    def _content(self, repository: Repository, path: str) -> None:
        content = repository.files[path]
        asked = None if self.server.hub.faults.ignore_range else self.headers.get("Range")
        start, end = _range(asked, len(content))
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Length": str(end - start),
            "ETag": f'"{repository.sha256(path)}"',
            "X-Repo-Commit": repository.commit,
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{repository.sha256(path)}"',
        }
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._head(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK, headers)
        count = self._send(content[start:end]) if self.command == "GET" else 0
        has_range, has_token = "Range" in self.headers, "Authorization" in self.headers
        self.server.hub.note(Served(self.command, path, start, has_range, count, has_token))

    def _send(self, content: bytes) -> int:
        """Write the body as far as the faults let it. Returns the number of bytes that went out."""
        hub = self.server.hub
        limit, held = len(content), hub.faults.hold_after_bytes
        cut = hub.faults.cut_after_bytes
        if cut is not None and cut < limit and hub.take_cut():
            limit, self.close_connection = cut, True
        sent = 0
        try:
            while sent < limit:
                if held is not None and sent >= held:
                    hub.held.set()
                    hub.release.wait(60)
                    held = None
                stop = limit if held is None else min(limit, held)
                chunk = content[sent : min(stop, sent + CHUNK_BYTES)]
                self.wfile.write(chunk)
                sent += len(chunk)
        except OSError:
            self.close_connection = True
        return sent

    def _refuse(self, status: HTTPStatus, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._answer(status, json.dumps({"error": message}).encode(), headers)

    def _answer(self, status: HTTPStatus, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, {"Content-Length": str(len(body)), **headers})
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _range(header: str | None, size: int) -> tuple[int, int]:
    """First byte and the one after the last, of a single `bytes=A-B` or `bytes=A-`."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
    if not found:
        return 0, size
    return int(found[1]), min(size, int(found[2]) + 1) if found[2] else size


def read_repositories(folder: Path) -> list[Repository]:
    """Each FOLDER/ORG/NAME with all its files."""
    repositories = []
    for place in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        files = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        repositories.append(Repository(str(place.relative_to(folder)), files))
    return repositories


def main() -> None:
    """Serve a folder until killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.hub_server", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds ORG/NAME/... for each repository")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    given = parser.parse_args()
    with HubServer(read_repositories(given.folder), given.host, given.port) as hub:
        sys.stdout.write(hub.url + "\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
