"""Somebody has taken over the gateway, or an engine. What he tries is refused, is recorded, and changes nothing.

The intruder acts in the gateway's container as its user and speaks to the manager's socket by hand; the prisoner acts
in an engine's container as its user. Both are programs of `tests/support`.
"""

import base64
import contextlib
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import intruder, prisoner
from tests.support.compose import ComposeStack, compose_stack, docker
from tests.support.hostile_specs import STRANGERS
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

PIDS = 96
FOREIGN = "alpine:3"
WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def stack() -> Iterator[ComposeStack]:
    more = {"HOSTLER_ENGINE_PIDS": str(PIDS), "HOSTLER_ENGINE_MEMORY_GIB": "1", "HOSTLER_ENGINE_CACHE_GIB": "0.125"}
    with compose_stack(gpu=False, HOSTLER_STOP_SECONDS="5", **more) as found:
        for name in ("tiny", "other"):
            found.endpoint(name, min_workers=1)
        (found.models / "local" / "escape").symlink_to("/")
        (found.models / "local" / "climb").symlink_to("../../../..")
        for name in ("tiny", "other"):
            found.wait_for_state(name, "hot", WAIT_SECONDS)
        yield found


def run_in(container: str, program: Any, **orders: Any) -> Any:
    """What a program of the tests answers in a container, run as the container's own user."""
    source = Path(program.__file__).read_text().replace("OTHER", orders.pop("other", "other"))
    command = ["docker", "exec", "-i", container, "python3", "-c", source]
    done = subprocess.run(command, input=json.dumps(orders), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def engine_of(stack: ComposeStack, name: str) -> str:
    """The id of an endpoint's one worker."""
    (worker,) = [one["id"] for one in stack.status(name)["workers"]]
    return str(worker)


@dataclass(frozen=True)
class Attack:
    """A message to the manager, and how it is refused: with which status, and as what kind."""

    message: bytes
    status: int
    kind: str
    piece: bytes = b""
    pieces: int = 0
    """So often the piece follows."""
    half: bool = False
    """It is never finished: the manager has to close by itself."""


def http(method: str, path: str, body: Any = b"", status: int = 404, kind: str = "http", **more: Any) -> Attack:
    """A whole request."""
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: manager\r\nConnection: close\r\nContent-Length: {len(sent)}\r\n\r\n"
    return Attack(head.encode() + sent, status, kind, **more)


def worker(**fields: Any) -> dict[str, Any]:
    """A worker's description, changed."""
    return {"id": "evil-0", "endpoint": "tiny", "model": "local/tiny", "served_names": ["tiny"], **fields}


def desired(*workers: Any, **fields: Any) -> Attack:
    """A desired set that is no such."""
    return http("PUT", "/desired", {"generation": 9, "workers": workers, **fields}, 400, "invalid")


def raw(head: bytes, status: int = 400, kind: str = "malformed", **more: Any) -> Attack:
    """Anything but a request of ours."""
    return Attack(head, status, kind, **more)


KIB64 = b"a" * 65536
CHUNK = b"10000\r\n" + KIB64 + b"\r\n"
PUT = b"PUT /desired HTTP/1.1\r\nHost: manager\r\n"
CLIMBS = ["../../etc", "/etc", "local/../../etc", "local/..", "/var/run/docker.sock", "local/a/b", "local/x\u0000", "."]
IDS = ["../w1", "w1/../../manager", "/etc", "..", "W1", "a" * 41, "w1\n", "w\u0000", ""]
ADAPTER = {"name": "a", "path": "local/tiny", "revision": "0", "rank": 1}
DOCKER = [
    *(("GET", "/_ping"), ("GET", "/info"), ("GET", "/v1.43/containers/json"), ("POST", "/containers/create")),
    *(("POST", "/v1.43/containers/create?name=x"), ("POST", "/images/create?fromImage=alpine"), ("GET", "/events")),
    *(("POST", "/containers/x/exec"), ("POST", "/build"), ("POST", "/volumes/create"), ("GET", "/../docker.sock")),
    *(("GET", "/workers/..%2f..%2f..%2fetc%2fpasswd/log"), ("GET", "/schema")),
]
METHODS = [("POST", "/desired"), ("DELETE", "/desired"), ("GET", "/desired"), ("PUT", "/observed"), ("TRACE", "/livez")]
ATTACKS = {
    **{f"field {name} {value}": desired(worker(**{name: value})) for name, value in STRANGERS},
    **{f"set with {name}": desired(**{name: value}) for name, value in STRANGERS[:12]},
    **{f"model {path!r}": desired(worker(model=path)) for path in CLIMBS},
    **{f"id {text!r}": desired(worker(id=text)) for text in IDS},
    **{f"adapter at {path!r}": desired(adapters={"a": [ADAPTER | {"path": path}]}) for path in CLIMBS[:4]},
    **{f"adapter of {text!r}": desired(adapters={text: [ADAPTER]}) for text in IDS[:4]},
    "adapter's name": desired(adapters={"a": [ADAPTER | {"name": "../x"}]}),
    "adapter's revision": desired(adapters={"a": [ADAPTER | {"revision": "../x"}]}),
    **{f"soon {path!r}": desired(soon=[path]) for path in CLIMBS[:4]},
    "another engine": desired(worker(engine="sh")),
    "a type": desired(worker(args={"seed": {"a": 1}})),
    "nobody's name": desired(worker(served_names=None)),
    "twice the same id": desired(worker(), worker()),
    "more workers than a machine has": desired(*(worker(id=f"w{number}") for number in range(257))),
    "more names than anybody has": desired(worker(served_names=["x"] * 65)),
    "a generation beyond all": http("PUT", "/desired", {"generation": 2**60}, 400, "invalid"),
    "no generation": http("PUT", "/desired", {"generation": 0}, 400, "invalid"),
    "an old generation": http("PUT", "/desired", {"generation": 1}, 409, "stale_generation"),
    "no JSON": http("PUT", "/desired", b"{", 400, "invalid"),
    "no UTF-8": http("PUT", "/desired", b'{"generation": 1, "soon": ["\xff"]}', 400, "invalid"),
    "deep JSON": http("PUT", "/desired", b'{"generation": 1, "workers": ' + b"[" * 100_000, 400, "invalid"),
    "a long number": http("PUT", "/desired", b'{"generation": ' + b"9" * 9_000 + b"}", 400, "invalid"),
    **{
        f"download {name!r}": http("POST", "/downloads", {"model": name}, 400, "invalid")
        for name in ("../x", "/etc/x", "a/../b", "http://h/x", "a", "a/b/c")
    },
    "download of a revision": http("POST", "/downloads", {"model": "a/b", "revision": "/../x"}, 400, "invalid"),
    "download to a place": http("POST", "/downloads", {"model": "a/b", "target": "/"}, 400, "invalid"),
    "no number of lines": http("GET", "/workers/w1/log?lines=-1", status=400, kind="invalid"),
    "a wait without end": http("GET", "/observed?wait=inf", status=400, kind="invalid"),
    "a worker's id": http("GET", "/workers/..%5cx/log", kind="invalid"),
    "a worker's parent": http("GET", "/workers/%2e%2e/log", kind="invalid"),
    "a download's id": http("DELETE", "/downloads/X..", kind="invalid"),
    **{f"{method} {path}": http(method, path) for method, path in DOCKER},
    **{f"{method} {path}": http(method, path, status=405) for method, path in METHODS},
    "a body beyond all": raw(PUT + b"Content-Length: 999999999999\r\n\r\n{", 413, "http", piece=KIB64, pieces=80),
    "a body without end": raw(PUT + b"Transfer-Encoding: chunked\r\n\r\n", 413, "http", piece=CHUNK, pieces=80),
    "noise": raw(bytes(range(256)) * 4),
    "zeros": raw(b"\x00" * 65536),
    "another protocol": raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 99 + b"\r\n\r\n"),
    "no version": raw(b"GET /livez\r\n\r\n"),
    "two lengths": raw(PUT + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}"),
    "a length and chunks": raw(PUT + b"Content-Length: 1\r\nTransfer-Encoding: gzip\r\n\r\n{}"),
    "a header without end": raw(b"GET /livez HTTP/1.1\r\nx: a", piece=KIB64, pieces=64),
    "headers without end": raw(b"GET /livez HTTP/1.1\r\n" + b"x: a\r\n" * 20_000),
    "half a header": raw(PUT[:-2], 0, "late", half=True),
    "not a word": raw(b"", 0, "late", half=True),
    "half a body": raw(PUT + b"Content-Length: 100\r\n\r\n{", 408, "late", half=True),
}


def machine(stack: ComposeStack) -> dict[str, Any]:
    """What must be the same afterwards: containers with the time of their start, images, and the models' files."""
    containers = {one["Name"]: (one["Id"], one["State"]["StartedAt"]) for one in stack.project.workers()}
    for service in ("gateway", "worker_manager"):
        found = stack.project.container(service)
        containers[service] = (found["Id"], found["State"]["StartedAt"])
    files = {str(path): path.lstat().st_mtime_ns for path in (stack.models / "local").rglob("*")}
    return {"containers": containers, "images": docker("images", "-q", FOREIGN), "files": files}


def intrude(stack: ComposeStack, do: str, what: Any) -> Any:
    """Have the intruder act in the gateway's container."""
    return run_in(stack.project.container("gateway")["Id"], intruder, do=do, what=what)


def sent(stack: ComposeStack, *attacks: Attack) -> list[tuple[int, str]]:
    """Send these; status and body of each answer."""
    orders = [
        {
            "message": base64.b64encode(attack.message).decode(),
            "piece": base64.b64encode(attack.piece).decode(),
            "pieces": attack.pieces,
            "half": attack.half,
        }
        for attack in attacks
    ]
    return [(status, body) for status, body in intrude(stack, "send", orders)]


def observed(stack: ComposeStack) -> dict[str, Any]:
    """The observed set, as the intruder reads it."""
    ((status, body),) = sent(stack, http("GET", "/observed"))
    assert status == 200, body
    seen: dict[str, Any] = json.loads(body)
    return seen


def refusals(stack: ComposeStack) -> Counter[str]:
    """How many of each kind the manager has counted."""
    return Counter({one["kind"]: one["count"] for one in observed(stack)["refusals"]})


def audited(stack: ComposeStack) -> Counter[str]:
    """How many of each kind stand in the audit trail."""
    found: Counter[str] = Counter()
    for action in ("manager.refused", "manager.overruled"):
        records = stack.client.get("/api/audit", params={"action": action, "limit": 1000}).json()["records"]
        for record in records:
            found[record["target"]] += record["to"]["count"]
    return found


def wait_until_audited(stack: ComposeStack, wanted: Counter[str]) -> None:
    """Workers beyond the policy are recorded by name where they are seen, and not in these sums."""
    wanted = Counter({kind: count for kind, count in wanted.items() if kind != "policy"})
    wait_until(lambda: audited(stack) >= wanted, f"recorded: {wanted}", seconds=WAIT_SECONDS, interval=0.2)


def assert_all_serve(stack: ComposeStack, before: dict[str, Any]) -> None:
    """Both endpoints answer, from the engines that they had, and the machine is as it was."""
    for name in ("tiny", "other"):
        said = stack.ask(name)
        assert said.status_code == 200, said.text
    wait_until(lambda: machine(stack) == before, "the machine is as it was", seconds=WAIT_SECONDS, interval=0.2)
    assert [line for line in stack.project.logs("worker_manager").splitlines() if "Traceback" in line] == []


# on the manager's socket


@pytest.fixture(scope="module")
def answers(stack: ComposeStack) -> dict[str, tuple[int, str]]:
    """What the manager answers to every attack; that the machine and the trail are right afterwards."""
    before, counted = machine(stack), refusals(stack)
    found = dict(zip(ATTACKS, sent(stack, *ATTACKS.values()), strict=True))
    assert_all_serve(stack, before)
    more = refusals(stack)
    wanted = Counter(attack.kind for attack in ATTACKS.values())
    mine = wanted.pop("stale_generation")  # the gateway's own orders may be too late as well
    found_more = more - counted
    assert found_more.pop("stale_generation") >= mine
    assert found_more == wanted
    wait_until_audited(stack, more)
    logged = stack.project.logs("worker_manager")
    for kind in {attack.kind for attack in ATTACKS.values()}:
        assert f'"kind": "{kind}"' in logged
    return found


@pytest.mark.parametrize("name", ATTACKS)
def test_a_message_that_is_no_order_is_refused_and_recorded(name: str, answers: dict[str, tuple[int, str]]) -> None:
    status, body = answers[name]
    assert status == ATTACKS[name].status, body
    if status:
        assert json.loads(body)["error"]["message"]


# orders that could be the gateway's own

ESCAPES: dict[str, tuple[dict[str, Any], str]] = {
    "an image from elsewhere": ({"image": FOREIGN}, "allow-list"),
    "the manager's image": ({"image": "hostler/manager:latest"}, "allow-list"),
    "the image by digest": ({"image": "hostler/engine-simulator@sha256:" + "0" * 64}, "allow-list"),
    "a link to the root": ({"model": "local/escape"}, "link out"),
    "a link that climbs": ({"model": "local/climb"}, "link out"),
    "all cards": ({"gpus": ["all"]}, "GPU"),
    "code of the model's": ({"args": {"trust-remote-code": True}}, "trust-remote-code"),
    "another socket": ({"args": {"uds": "/cache/x"}}, "uds"),
    "a port": ({"args": {"host": "0.0.0.0"}}, "host"),
    "code from a file": ({"args": {"middleware": "x.y"}}, "middleware"),
    "a variable": ({"args": {"LD_PRELOAD": "/x.so"}}, "LD_PRELOAD"),
    "a flag in a flag": ({"args": {"seed=1 --trust-remote-code": 1}}, "seed=1"),
    "a flag as a name": ({"served_names": ["--trust-remote-code"]}, "dash"),
    "a zero byte": ({"endpoint": "a\u0000b"}, "zero byte"),
}
"""Workers that the contract knows and the policy refuses, and a word of its reason."""


def order(stack: ComposeStack, *workers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A desired set in the gateway's name: its own workers and these. What was observed before."""
    seen = observed(stack)
    kept = [one["spec"] for one in seen["workers"]]
    wanted = {"generation": seen["generation"] + 1, "workers": [*kept, *workers], **fields}
    ((status, body),) = sent(stack, http("PUT", "/desired", wanted))
    assert status == 200, body
    return seen


def failures(stack: ComposeStack) -> dict[str, str]:
    """Why each of the intruder's workers was given up."""
    shown = {one["spec"]["id"]: one for one in observed(stack)["workers"] if one["spec"]["id"].startswith("evil-")}
    return {worker: one["failure"]["message"] for worker, one in shown.items() if one["state"] == "failed"}


@contextlib.contextmanager
def frozen(stack: ComposeStack) -> Iterator[None]:
    """The gateway does nothing meanwhile: it would put things right at once."""
    assert intrude(stack, "freeze", what=True) == 1
    try:
        yield
    finally:
        assert intrude(stack, "freeze", what=False) == 1


def test_workers_beyond_the_policy_never_become_containers(stack: ComposeStack) -> None:
    before, counted = machine(stack), refusals(stack)
    summed = audited(stack)["policy"]
    evil = [worker(id=f"evil-{number}", **fields) for number, (fields, _) in enumerate(ESCAPES.values())]

    def all_given_up() -> dict[str, str] | None:
        return one if len(one := failures(stack)) == len(evil) else None

    with frozen(stack):
        order(stack, *evil)
        found = wait_until(all_given_up, "all are given up", seconds=WAIT_SECONDS, interval=0.2)
        assert found is not None
        for number, (name, (_, why)) in enumerate(ESCAPES.items()):
            assert why in found[f"evil-{number}"], name
        assert machine(stack) == before
        assert (refusals(stack) - counted)["policy"] == len(evil)
    # the gateway finds them, and the manager under another's orders
    wait_until(lambda: not failures(stack), "the gateway's own orders hold", seconds=WAIT_SECONDS, interval=0.2)
    assert_all_serve(stack, before)

    def all_recorded() -> bool:
        """By name if the gateway still saw them, else in a sum."""
        named = stack.client.get("/api/audit", params={"action": "worker.refused", "limit": 1000}).json()["records"]
        messages = {record["to"]["message"] for record in named} & set(found.values())
        return len(messages) + audited(stack)["policy"] - summed >= len(evil)

    wait_until(all_recorded, "all are recorded", seconds=WAIT_SECONDS, interval=0.2)
    wait_until_audited(stack, Counter(orders=1))


def test_an_order_under_a_number_that_was_used_is_refused(stack: ComposeStack) -> None:
    number = observed(stack)["generation"]
    counted = refusals(stack)
    attacks = [http("PUT", "/desired", {"generation": number}, 409, "stale_generation")] * 3
    assert [status for status, _ in sent(stack, *attacks)] == [409] * 3
    assert (refusals(stack) - counted)["stale_generation"] >= 3


def test_a_flood_of_orders_ends_with_the_gateways_own(stack: ComposeStack) -> None:
    before, seen, counted = machine(stack), observed(stack), audited(stack)["orders"]
    kept = [one["spec"] for one in seen["workers"]]
    flood = [
        http("PUT", "/desired", {"generation": seen["generation"] + number, "workers": kept, "soon": ["local/none"]})
        for number in range(10, 160)
    ]
    assert {status for status, _ in sent(stack, *flood)} <= {200, 409}  # the gateway's own come between
    wait_until_audited(stack, Counter(orders=counted + 1))
    assert_all_serve(stack, before)


def test_a_crowd_of_connections_is_cut_off_and_the_manager_serves_on(stack: ComposeStack) -> None:
    before, counted = machine(stack), refusals(stack)
    assert intrude(stack, "crowd", [300, 300 - 64]) >= 300 - 64
    assert_all_serve(stack, before)
    assert (refusals(stack) - counted)["crowded"] >= 300 - 64
    wait_until_audited(stack, refusals(stack))


# beside the manager's socket, with the gateway's rights

DOORS = """
import json, os, socket, pathlib
def tried(what, *arguments):
    try:
        what(*arguments)
    except OSError as error:
        return type(error).__name__
    return "done"
def connect(family, address):
    with socket.socket(family) as reached:
        reached.settimeout(3)
        reached.connect(address)
folders = ["/", "/etc", "/models/local", "/run/hostler/manager", "/run/hostler/engines", "/opt/hostler/app/gateway"]
sockets = [str(path) for path in pathlib.Path("/").glob("**/docker*.sock")]
print(json.dumps({
    "docker": tried(connect, socket.AF_UNIX, "/var/run/docker.sock"),
    "docker over tcp": tried(connect, socket.AF_INET, ("172.17.0.1", 2375)),
    "manager's socket away": tried(os.unlink, "/run/hostler/manager/manager.sock"),
    "root": tried(os.setuid, 0),
    "device": tried(os.mknod, "/tmp/disk", 0o60600, os.makedev(254, 0)),
    **{folder: tried(pathlib.Path(folder, "x").write_text, "x") for folder in folders},
    "sockets": sockets,
}))
"""


def test_beside_its_two_sockets_the_gateway_has_no_door(stack: ComposeStack) -> None:
    command = ["docker", "exec", stack.project.container("gateway")["Id"], "python", "-c", DOORS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    assert found.pop("sockets") == []
    assert [name for name, outcome in found.items() if outcome == "done"] == []


# from inside an engine


@pytest.fixture(scope="module")
def outcomes(stack: ComposeStack) -> dict[str, str]:
    """What comes of every attempt in an engine; that both engines and the machine are as before."""
    before = machine(stack)
    held = stack.project.engines()[engine_of(stack, "tiny")]["Id"]
    found: dict[str, str] = run_in(held, prisoner, other=engine_of(stack, "other"), do="all")
    assert_all_serve(stack, before)
    return found


@pytest.mark.parametrize("name", prisoner.ATTEMPTS)
def test_an_engine_gets_out_of_its_container_by_no_way(name: str, outcomes: dict[str, str]) -> None:
    assert outcomes[name] in prisoner.REFUSALS, outcomes[name]


def test_what_would_be_larger_than_its_memory_disk_is_refused_for_its_size(outcomes: dict[str, str]) -> None:
    assert {outcomes[name] for name in ("more than /tmp holds", "more than shared memory holds")} == {"ENOSPC"}


def test_a_fork_bomb_ends_at_the_limit_and_the_engine_serves_on(stack: ComposeStack) -> None:
    before = machine(stack)
    held = stack.project.engines()[engine_of(stack, "tiny")]["Id"]
    error, _, count = run_in(held, prisoner, do="forks").partition(" after ")
    assert error == "EAGAIN"
    assert int(count) < PIDS
    assert_all_serve(stack, before)


def test_an_engine_that_prints_without_end_keeps_thirty_megabytes(stack: ComposeStack) -> None:
    before = machine(stack)
    held = stack.project.engines()[engine_of(stack, "tiny")]["Id"]
    assert run_in(held, prisoner, do="print", lines=5000) == "printed"  # 41 MB
    kept = len(docker("logs", held).encode())
    assert kept < 31_000_000
    assert_all_serve(stack, before)
    answered = stack.client.get(f"/api/workers/{engine_of(stack, 'tiny')}/logs")
    assert answered.status_code == 200
    assert len(answered.content) < 4 * 1024 * 1024


HOARDS = ("fill", "hoard", "lock")
"""Ways to use up the machine's disk, or to keep others from looking."""


def remove(stack: ComposeStack, name: str) -> None:
    """Delete an endpoint and its model: nothing of it is to be found by the tests that follow."""
    stack.client.delete(f"/api/endpoints/{name}").raise_for_status()
    shutil.rmtree(stack.models / "local" / name)


def left_by(stack: ComposeStack, *workers: str) -> set[str]:
    """What lies in the socket folders of these workers, as the manager sees it."""
    folders = [f"/run/hostler/engines/{worker}" for worker in workers]
    names = "import os, sys; print(*{name for folder in sys.argv[1:] for name in os.listdir(folder)})"
    return set(docker("exec", stack.project.container("worker_manager")["Id"], "python", "-c", names, *folders).split())


def test_an_engine_that_fills_the_disk_is_ended_and_what_it_wrote_is_gone(stack: ComposeStack) -> None:
    before = machine(stack)
    for name in HOARDS:
        stack.endpoint(name, min_workers=1)
    for name in HOARDS:
        stack.wait_for_state(name, "hot", WAIT_SECONDS)
    workers = {name: engine_of(stack, name) for name in HOARDS}
    first = {name: stack.project.engines()[worker]["Id"] for name, worker in workers.items()}
    for name in HOARDS:
        # it may be ended in the middle of it
        command = ["docker", "exec", "-i", first[name], "python3", "-c", Path(prisoner.__file__).read_text()]
        subprocess.run(command, input=json.dumps({"do": name}), capture_output=True, text=True, timeout=60, check=False)

    def replaced() -> bool:
        engines = stack.project.engines()
        return all(worker in engines and engines[worker]["Id"] != first[name] for name, worker in workers.items())

    wait_until(replaced, "all are replaced", seconds=WAIT_SECONDS, interval=0.2)
    for name in HOARDS:
        stack.wait_for_state(name, "hot", WAIT_SECONDS)
        said = stack.ask(name)
        assert said.status_code == 200, said.text
    assert left_by(stack, *workers.values()) == {"engine.sock"}

    def recorded() -> bool:
        found = stack.client.get("/api/audit", params={"action": "worker.refused", "limit": 1000}).json()["records"]
        return {record["target"] for record in found} >= set(HOARDS)

    wait_until(recorded, "all are recorded", seconds=WAIT_SECONDS, interval=0.2)
    for name in HOARDS:
        remove(stack, name)
    assert_all_serve(stack, before)


def test_a_link_in_the_place_of_an_engines_socket_is_followed_by_nobody(stack: ComposeStack) -> None:
    before, counted = machine(stack), refusals(stack)
    stack.endpoint("swapped", min_workers=1)
    stack.wait_for_state("swapped", "hot", WAIT_SECONDS)
    held = stack.project.engines()[engine_of(stack, "swapped")]["Id"]
    engines = "/run/hostler/engines"
    for target in (f"{engines}/{engine_of(stack, 'other')}/engine.sock", "/run/hostler/manager/manager.sock"):
        assert run_in(held, prisoner, do="swap", target=target) == "swapped"
        body = {"model": "swapped", "prompt": "x", "max_tokens": 1}
        said = stack.client.post("/v1/completions", json=body, headers={"x-hostler-timeout": "1"})
        assert said.status_code in {502, 503, 504}, said.text
    assert refusals(stack)["http"] == counted["http"], "somebody spoke to the manager"
    remove(stack, "swapped")
    assert_all_serve(stack, before)
