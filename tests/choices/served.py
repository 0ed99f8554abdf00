"""A workload for real: users on threads, over HTTP, against a gateway or straight against the engines' sockets."""

import contextlib
import dataclasses
import http.client
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.choices.workload import Conversation, Outcome, Shape, conversations
from tests.engine_simulator.configuration import Simulation
from tests.support.processes import REPOSITORY, short_folder
from tests.support.stack import ADMIN_KEY, Stack, running_stack
from tests.support.waiting import wait_until
from tests.testbed.simulated_gpus.host import SimulatedHost, cards

WORKERS = 4
CARD_MIB = 16_384
"""Of a simulated card: what a test machine's own memory holds does not matter."""
SECONDS = 30.0
SHAPE = Shape(conversations=90, users=24, system_prompts=6, turns=(2, 6), answer_bytes=(0, 0))
CACHE_BLOCKS = 32_768
"""Of all workers together."""
ENGINE = Simulation(answer_tokens=24, tokens_per_second=400.0)

Connect = Callable[[], http.client.HTTPConnection]


class UnixConnection(http.client.HTTPConnection):
    """A connection to an engine, past the gateway."""

    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the Unix socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SECONDS)
        self.sock.connect(str(self._path))


def converse(shape: Shape, model: str, connects: Sequence[Connect]) -> None:
    """Let all users have all conversations; each request takes the next of the ways to connect, in turn."""
    to_come = iter(conversations(shape))
    turn = itertools.count()
    lock = threading.Lock()

    def user() -> None:
        connections = [connect() for connect in connects]
        try:
            while True:
                with lock:
                    talk = next(to_come, None)
                if talk is None:
                    return
                while not talk.is_over():
                    with lock:
                        number = next(turn) % len(connections)
                    _say(connections[number], model, talk)
        finally:
            for connection in connections:
                connection.close()

    with ThreadPoolExecutor(shape.users) as pool:
        for ended in [pool.submit(user) for _ in range(shape.users)]:
            ended.result()


def _say(connection: http.client.HTTPConnection, model: str, talk: Conversation) -> None:
    body = json.dumps({"model": model, "messages": talk.ask()}, separators=(",", ":"))
    headers = {"authorization": f"Bearer {ADMIN_KEY}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status == http.client.OK, text
    talk.hear(json.loads(text)["choices"][0]["message"]["content"])


class Engines:
    """The engines of one endpoint, and what they count."""

    def __init__(self, stack: Stack, name: str, workers: int) -> None:
        self._stack = stack
        self.name = name
        self._workers = workers
        engine = dataclasses.replace(ENGINE, prefix_cache_blocks=CACHE_BLOCKS // workers)
        stack.endpoint(name, engine, min_workers=workers, max_workers=workers, per_worker=64, gpu_memory_gib=2)

    def wait(self) -> None:
        """Wait until all of them serve."""
        what = f"{self._workers} workers of {self.name}"
        wait_until(lambda: len(self._ready()) == self._workers, what, seconds=SECONDS)

    def _ready(self) -> list[str]:
        return [worker["id"] for worker in self._stack.status(self.name)["workers"] if worker["state"] == "ready"]

    def through_the_gateway(self, shape: Shape) -> Outcome:
        """Carry out the workload as users do."""
        return self._measured(shape, [lambda: http.client.HTTPConnection("127.0.0.1", self._stack.port, SECONDS)])

    def by_turns(self, shape: Shape) -> Outcome:
        """Carry out the workload round robin, straight to the engines."""
        folder = self._stack.run / "engines"
        sockets = [folder / worker / "engine.sock" for worker in self._ready()]
        return self._measured(shape, [lambda path=path: UnixConnection(path) for path in sockets])  # type: ignore[misc]

    def _measured(self, shape: Shape, connects: Sequence[Connect]) -> Outcome:
        before = [self._stack.engine_stats(worker) for worker in self._ready()]
        converse(shape, self.name, connects)
        after = [self._stack.engine_stats(worker) for worker in self._ready()]

        def grown(field: str) -> list[int]:
            return [int(now[field] - then[field]) for now, then in zip(after, before, strict=True)]

        rate = sum(grown("prefix_cache_hits")) / sum(grown("prefix_cache_queries"))
        return Outcome(rate, tuple(grown("started")))


@contextlib.contextmanager
def running_engines() -> Iterator[tuple[Engines, Engines]]:
    """A Hostler with a simulated card; four workers, and one whose cache is as large as theirs together."""
    with short_folder() as folder:
        host = SimulatedHost.create(folder / "gpus", cards(1, CARD_MIB))
        settings = {
            "HOSTLER_DEVICE": "cuda",
            "HOSTLER_ENGINE_ENV": f"PYTHONPATH={REPOSITORY} HOSTLER_SIMULATED_GPUS={host.folder}",
            **host.env,
        }
        with running_stack(settings) as stack:
            engines = Engines(stack, "four", WORKERS), Engines(stack, "one", 1)
            for started in engines:
                started.wait()
            yield engines


def compare(four: Engines, one: Engines, shape: Shape = SHAPE) -> dict[str, Outcome]:
    """One big cache, the gateway's choice, and round robin, each with prompts that no cache has seen."""
    return {
        "one big cache": one.through_the_gateway(shape),
        "Hostler": four.through_the_gateway(shape),
        "round robin": four.by_turns(dataclasses.replace(shape, greeting="Again: ")),
    }


def rows(outcomes: dict[str, Outcome]) -> list[dict[str, Any]]:
    """The outcomes as a table wants them."""
    big = outcomes["one big cache"].hit_rate
    return [
        {
            "choice": name,
            "hit rate": f"{100 * outcome.hit_rate:.1f} %",
            "of one big cache's": f"{100 * outcome.hit_rate / big:.1f} %",
            "busiest worker over the mean": f"{outcome.most_over_mean():.2f}",
        }
        for name, outcome in outcomes.items()
    ]
