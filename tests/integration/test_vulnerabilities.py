"""scripts/vulnerabilities against an advisory service of the test's own, which speaks as OSV does."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.processes import REPOSITORY, free_port

Answer = Callable[[str, str], tuple[int, object]]
CLEAN, FOUND, WRONG_WORDS, NOT_SCANNED = 0, 1, 2, 3


def advisory(package: str, name: str = "GHSA-test-0001") -> dict[str, Any]:
    return {
        "id": name,
        "aliases": ["CVE-2026-0001"],
        "summary": "it does what it should not",
        "schema_version": "1.6.0",
        "affected": [
            {
                "package": {"name": package, "ecosystem": "PyPI"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}],
            }
        ],
    }


class Service:
    """An OSV of the test's own; `answer` says status and body for a package's name and version."""

    def __init__(self) -> None:
        self.asked: dict[str, str] = {}
        self.answer: Answer = self.knows()
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["content-length"])))
                name, version = query["package"]["name"], query["version"]
                service.asked[name] = version
                status, body = service.answer(name, version)
                said = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                """Nothing: the tests' output is not for every request."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/query"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @staticmethod
    def knows(*packages: str) -> Answer:
        """An answer of a service that knows something against these, and against what everybody knows about."""
        bad = {"jinja2", *packages}
        return lambda name, _: (200, {"vulns": [advisory(name)]} if name in bad else {})

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)


@pytest.fixture(scope="module")
def running_service() -> Iterator[Service]:
    made = Service()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def service(running_service: Service) -> Service:
    running_service.asked.clear()
    running_service.answer = Service.knows()
    return running_service


def scan(*words: str) -> tuple[int, str]:
    """Exit code and all that was said."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        [str(REPOSITORY / "scripts" / "vulnerabilities"), *words],
        env=kept | {"HOSTLER_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_nothing_known_against_any_package_is_clean_and_every_pin_of_every_platform_was_asked_about(
    service: Service,
) -> None:
    code, said = scan("gateway", "--osv-url", service.url)
    assert code == CLEAN, said
    assert "nothing is known" in said
    lines = (REPOSITORY / "requirements" / "gateway.txt").read_text().splitlines()
    pins = dict(line.split()[0].split("==") for line in lines if "==" in line and not line.startswith("#"))
    assert {name: version for name, version in service.asked.items() if name != "jinja2"} == pins
    assert "colorama" in service.asked, "which only Windows installs"


def test_a_package_with_an_advisory_is_named_with_where_it_is_mended_unless_it_is_ignored(service: Service) -> None:
    service.answer = Service.knows("litestar")
    code, said = scan("gateway", "--osv-url", service.url)
    assert code == FOUND, said
    assert "litestar 2." in said
    assert "CVE-2026-0001 (GHSA-test-0001), mended in 99.0: it does what it should not" in said
    assert "jinja2" not in said


def broken(name: str, _: str) -> tuple[int, object]:
    return (500, "no") if name == "litestar" else Service.knows()(name, "")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(broken, "no answer that can be read", id="an error for one package"),
        pytest.param(lambda *_: (200, {}), "knows nothing against jinja2", id="a service that never knows anything"),
    ],
)
def test_what_is_no_answer_is_not_a_clean_one(service: Service, answer: Answer, reason: str) -> None:
    service.answer = answer
    code, said = scan("gateway", "--osv-url", service.url)
    assert code == NOT_SCANNED, said
    assert "NOT SCANNED" in said
    assert reason in said
    assert "nothing is known." not in said


def test_a_service_out_of_reach_is_said_with_a_status_of_its_own() -> None:
    code, said = scan("gateway", "--osv-url", f"http://127.0.0.1:{free_port()}/v1/query")
    assert code == NOT_SCANNED, said
    assert "NOT SCANNED: the service gave no answer" in said


def test_a_lock_that_is_none_is_a_wrong_word() -> None:
    code, said = scan("no-such-lock")
    assert code == WRONG_WORDS
    assert "there is no lock no-such-lock; the locks are dev, gateway, manager, people" in said
