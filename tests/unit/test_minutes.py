"""What was taken within the last minute outlives the gateway; nobody gets more of a minute by a restart."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.gate import Gate
from gateway.access.minutes import FILE, Minutes
from gateway.access.window import Window, tick_of
from gateway.errors import LimitReached
from gateway.types import Estimate, Limits

LIMITS = Limits(requests_per_minute=5, tokens_per_minute=1_000)


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Life:
    """One life of a gateway: its steady clock begins anew, the machine's time goes on."""

    def __init__(self, folder: Path, unix: Clock, steady: float = 7.0) -> None:
        self.steady = Clock(steady)
        self.gate = Gate(self.steady, unix)
        self.gate.set_key("k", "of a test", LIMITS, None)
        self.gate.set_endpoints({"e": LIMITS})
        self.minutes = Minutes(folder, self.gate, unix)

    async def ask(self, key: str = "k", endpoint: str = "", tokens: int = 100) -> None:
        quotas = self.gate.quotas(key, endpoint)
        assert quotas is not None
        ticket = await self.gate.enter(quotas, Estimate(tokens, tokens), 0)
        ticket.settle(tokens)


def files(folder: Path) -> list[tuple[str, int]]:
    """Name and rights of each file."""
    return [(path.name, path.stat().st_mode & 0o777) for path in folder.iterdir()]


@pytest.fixture
def unix() -> Clock:
    return Clock(1_000_000.0)


async def test_a_restart_begins_no_new_minute_and_the_old_one_ends_when_it_would_have(
    tmp_path: Path, unix: Clock
) -> None:
    life = Life(tmp_path, unix)
    for _ in range(4):
        await life.ask()
    await life.ask("nobody", "e")
    await life.minutes.write()
    unix.now += 20
    for steady in (3.0, 90_000.0):
        life = Life(tmp_path, unix, steady)
        await life.minutes.recall()
        with pytest.raises(LimitReached, match=r"'e' may take 1000 tokens .* 900 are left"):
            await life.ask("nobody", "e", 901)
        await life.ask(tokens=600)
        with pytest.raises(LimitReached, match="5 requests"):
            await life.ask()
        life.steady.now += 39
        with pytest.raises(LimitReached):
            await life.ask()
        life.steady.now += 3
        await life.ask(tokens=300)


async def test_whatever_the_clocks_do_nobody_is_locked_out_or_let_in_early(tmp_path: Path, unix: Clock) -> None:
    life = Life(tmp_path, unix)
    for _ in range(5):
        await life.ask()
    await life.minutes.write()
    for passed, free in ((-3_600, False), (0, False), (59, False), (62, True), (1e9, True)):
        later = Clock(unix.now + passed)
        life = Life(tmp_path, later)
        await life.minutes.recall()
        if free:
            await life.ask()
            continue
        with pytest.raises(LimitReached) as caught:
            await life.ask()
        assert (caught.value.retry_after or 0) <= 61


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"at": 1, "keys": {"k": 5}, "endpoints": {}}', b"\xff" * 9])
async def test_a_file_that_cannot_be_read_keeps_nobody_from_starting(
    tmp_path: Path, unix: Clock, content: bytes
) -> None:
    life = Life(tmp_path, unix)
    await life.minutes.recall()
    (tmp_path / FILE).write_bytes(content)
    await life.minutes.recall()
    await life.ask()
    await life.minutes.write()
    assert files(tmp_path) == [(FILE, 0o600)]


async def test_nothing_is_written_where_nothing_is_taken_and_a_disk_that_takes_nothing_is_no_failure(
    tmp_path: Path, unix: Clock
) -> None:
    life = Life(tmp_path, unix)
    await life.minutes.write()
    before = (tmp_path / FILE).stat().st_mtime_ns
    await life.minutes.write()
    assert (tmp_path / FILE).stat().st_mtime_ns == before
    nowhere = Minutes(tmp_path / "none", life.gate, unix)
    await life.ask()
    await nowhere.write()
    await nowhere.write()


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=30), st.floats(0, 80), st.floats(0, 80))
def test_what_is_put_back_is_never_free_before_it_would_have_been_and_at_most_a_second_later(
    steps: list[tuple[float, int]], passed: float, later: float
) -> None:
    now = 100.0
    old = Window(None, 10_000)
    for pause, amount in steps:
        now += pause
        old.take(amount, tick_of(now))
    new = Window(None, 10_000)
    new.put_back(old.taken(now), passed, 5.0)
    soon, late = (new.remaining("tokens", 5.0 + later + more) for more in (0, 1.05))
    before, after = (old.remaining("tokens", now + passed + later + more) for more in (0, 0.02))
    assert soon <= after
    assert late >= before
