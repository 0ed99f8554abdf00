"""No credential gets into the log."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.credentials import mint
from gateway.logs import redact, whereabouts
from tests.support.processes import running

SCRIPT = """
import logging, sys
import structlog
from gateway import logs
logs.set_up("info", sys.argv[1])
log = structlog.get_logger("test")
log.info("request", header="Bearer hst_abcdefgh", path="/v1", number=1)
log.debug("too quiet")
logging.getLogger("uvicorn.error").warning("from the library: %s", "Bearer hst_abcdefgh")
try:
    key = "hst_abcdefgh"  # not in the line below: Python 3.13 shows the lines of such a program too
    raise ValueError(f"with {key} inside")
except ValueError:
    log.exception("failed")
"""

REQUEST_SCRIPT = """
import asyncio, sys, time
import structlog
from gateway import logs

async def main():
    log, requests = structlog.get_logger("test"), logs.RequestLog(sys.argv[2], sys.argv[1])
    log.warning("before")
    line = requests.parts(logs.RequestLine("", "POST", "/v1/x", 200, "a", None, None, 0, 0, True, None))
    requests.write(line, b"hst_abcdefgh", 1.5, 0.0, time.time())
    log.warning("between")
    for number in range(600):
        line = requests.parts(logs.RequestLine("", "POST", "/v1/x", number, "a", None, None, 0, 0, True, None))
        requests.write(line, b"r", 1.5, 0.0, time.time())

logs.set_up(sys.argv[2], sys.argv[1])
asyncio.run(main())
"""


THREADS_SCRIPT = """
import asyncio, sys, threading
from gateway import logs

def writes(number):
    for line in range(2000):
        logs.output.write(f"{number} {line}\\n")

async def main():
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=writes, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for line in range(20_000):
        logs.output.later(b"loop %d\\n" % line)
        if line % 100 == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(logs.FLUSH_SECONDS * 2)  # the last of them come by themselves
    for thread in threads:
        thread.join()

asyncio.run(main())
"""


def redacted(text: str) -> str:
    return str(redact(None, "info", {"event": "x", "value": text})["value"])


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Basic", "BASIC"])
def test_what_stands_behind_a_scheme_is_removed_in_any_spelling(scheme: str) -> None:
    assert redacted(f"authorization: {scheme} c2VjcmV0OnNlY3JldA==") == "authorization: [redacted]"


def test_a_bug_is_told_by_where_it_was_and_not_in_words_that_may_be_a_prompts() -> None:
    def fails(prompt: str) -> None:
        try:
            int(prompt)
        except ValueError:
            raise KeyError(prompt) from None

    def wraps(prompt: str) -> None:
        try:
            fails(prompt)
        except KeyError as problem:
            raise RuntimeError(prompt) from problem

    with pytest.raises(RuntimeError) as caught:
        wraps("a canary")
    told = whereabouts(caught.value)
    assert "canary" not in told
    assert "RuntimeError in test_logs.py:" in told
    assert "; from KeyError in test_logs.py:" in told
    assert told.index(" wraps, ") < told.index(" fails, ")


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_key_is_removed_wherever_it_stands(before: str, after: str) -> None:
    _, key = mint()
    assert key not in redacted(f"{before} {key} {after}")


def test_everything_else_stays_as_it_is() -> None:
    event = {"event": "a request", "number": 7, "nothing": None, "text": "basically a bear"}
    assert redact(None, "info", dict(event)) == event


@pytest.mark.parametrize("form", ["json", "console"])
def test_our_lines_and_the_libraries_lines_come_in_one_form_without_keys(form: str) -> None:
    with running([sys.executable, "-c", SCRIPT, form]) as process:
        assert process.wait() == 0
        printed = process.output
    assert "hst_abcdefgh" not in printed
    assert "too quiet" not in printed
    assert printed.count("[redacted]") == 3
    if form == "json":
        lines = [json.loads(line) for line in printed.splitlines()]
        assert [line["level"] for line in lines] == ["info", "warning", "error"]
        assert all(line["timestamp"].endswith("Z") for line in lines)
        assert "ValueError" in lines[2]["exception"]


def requests_logged(form: str, level: str) -> str:
    with running([sys.executable, "-c", REQUEST_SCRIPT, form, level]) as process:
        assert process.wait() == 0
        return process.output


def test_a_request_s_line_has_the_shape_of_all_others_and_stays_in_its_place() -> None:
    first, request, second, *many = [json.loads(line) for line in requests_logged("json", "info").splitlines()]
    assert [first["event"], request["event"], second["event"]] == ["before", "request", "between"]
    assert (request["level"], request["request_id"], request["worker"]) == ("info", "[redacted]", None)
    assert first["timestamp"] <= request["timestamp"] <= second["timestamp"]
    assert len(first["timestamp"]) == len(request["timestamp"])
    assert [line["status"] for line in many] == list(range(600)), "none is lost at the end of the process"


def test_requests_are_logged_in_colours_too_and_not_at_all_above_their_level() -> None:
    shown = requests_logged("console", "info")
    assert shown.count("request_id") == 601
    assert "hst_abcdefgh" not in shown
    assert len(requests_logged("json", "warning").splitlines()) == 2


def test_no_line_is_lost_or_out_of_place_where_threads_log_too() -> None:
    with running([sys.executable, "-c", THREADS_SCRIPT]) as process:
        assert process.wait() == 0
        lines = [line.split() for line in process.output.splitlines()]
    for who, number in (("loop", 20_000), ("0", 2000), ("1", 2000)):
        assert [line[1] for line in lines if line[0] == who] == [str(each) for each in range(number)]
