"""Failed sign-ins: limited by address, recorded in sums, in bounded memory."""

import re
from typing import Any

import pytest

from gateway.access import sign_ins, sums
from gateway.access.credentials import mint
from gateway.access.sign_ins import SignIns, guessable
from gateway.actor import Actor
from gateway.addresses import Addresses
from gateway.database.chain import Change
from gateway.database.connection import DatabaseError
from gateway.errors import Forbidden, GatewayError, TooManyRequests, Unauthorized
from gateway.types import Principal, Scope

REFUSAL = Unauthorized("no")
ADMIN = Principal("admin", "admin", frozenset(Scope), frozenset({"*"}))
OTHER = Principal("12345678", "a key", frozenset(Scope), frozenset({"*"}))


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Trail:
    """What was recorded; fails while told to."""

    def __init__(self) -> None:
        self.records: list[tuple[Actor, Change]] = []
        self.fails = False

    async def __call__(self, changes: list[tuple[Actor, Change]]) -> None:
        if self.fails:
            raise DatabaseError("disk full")
        self.records += changes

    @property
    def sums(self) -> dict[str, Any]:
        """How many failures by address."""
        found: dict[str, int] = {}
        for actor, change in self.records:
            assert change.after is not None
            found[actor.address] = found.get(actor.address, 0) + change.after["count"]
        return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def trail() -> Trail:
    return Trail()


@pytest.fixture
def limiter(trail: Trail, clock: Clock) -> SignIns:
    return SignIns(trail, Addresses(), 6, guessable="admin", clock=clock)


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + key.encode())]


def fail(limiter: SignIns, address: str = "192.0.2.1", key: str = "a-guess") -> GatewayError:
    return limiter.failed(REFUSAL, address, bearer(key), "r1")


def test_more_than_so_many_failures_are_answered_429_until_time_has_passed(limiter: SignIns, clock: Clock) -> None:
    assert [fail(limiter).status for _ in range(8)] == [401] * 6 + [429] * 2
    refused = fail(limiter)
    assert isinstance(refused, TooManyRequests)
    assert refused.retry_after == 10
    assert fail(limiter, "192.0.2.2").status == 401
    clock.now += refused.retry_after
    assert [fail(limiter).status for _ in range(2)] == [401, 429]


def test_a_request_without_a_credential_is_no_attempt(limiter: SignIns) -> None:
    assert all(limiter.failed(REFUSAL, "192.0.2.1", [], "r1") is REFUSAL for _ in range(100))
    assert not limiter.limited


def test_from_a_limited_address_a_key_that_can_be_guessed_is_not_even_tried(limiter: SignIns, clock: Clock) -> None:
    while fail(limiter).status == 401:
        pass
    assert limiter.limited
    with pytest.raises(TooManyRequests):
        limiter.admit(ADMIN, "192.0.2.1", [])
    limiter.admit(OTHER, "192.0.2.1", [])
    limiter.admit(ADMIN, "192.0.2.2", [])
    clock.now += 10
    limiter.admit(ADMIN, "192.0.2.1", [])


def test_keys_of_our_own_making_are_not_taken_for_made_up_ones() -> None:
    assert not guessable(mint()[1])
    assert not guessable(f"hst_admin_{'0' * 48}")
    assert guessable("correct horse battery staple")
    assert guessable("hst_correct-horse")


async def test_failures_are_recorded_in_sums_with_the_id_that_the_key_had(limiter: SignIns, trail: Trail) -> None:
    key_id, key = mint()
    for _ in range(20):
        fail(limiter, key=key)
    await limiter.write()
    ((actor, change),) = trail.records
    assert (actor.who, actor.address, actor.request_id) == ("nobody", "192.0.2.1", "r1")
    assert (change.action, change.target) == ("sign_in.failed", key_id)
    assert change.after is not None
    assert (change.after["count"], change.after["limited"]) == (20, 14)
    assert key not in repr(trail.records)
    assert re.search(r"a-guess", repr(trail.records)) is None


async def test_no_attack_writes_more_than_so_much_or_takes_more_memory(
    limiter: SignIns, trail: Trail, clock: Clock
) -> None:
    tried = 0
    for block in range(4):
        for host in range(sign_ins.ADDRESSES // 2):
            fail(limiter, f"10.{block}.{host // 256}.{host % 256}")
            tried += 1
        await limiter.write()
        clock.now += sign_ins.WRITE_SECONDS
    assert len(trail.records) <= sums.AT_ONCE + 1
    assert len(limiter._allowances) == sign_ins.ADDRESSES
    assert len(limiter.failures.unwritten) <= sums.UNWRITTEN + 1
    while limiter.failures.unwritten:
        clock.now += sums.EACH_SECONDS
        await limiter.write()
    assert sum(trail.sums.values()) == tried


async def test_what_cannot_be_written_is_written_later(limiter: SignIns, trail: Trail) -> None:
    fail(limiter)
    trail.fails = True
    await limiter.write()
    fail(limiter)
    trail.fails = False
    await limiter.write()
    assert trail.sums == {"192.0.2.1": 2}


async def test_what_a_known_key_may_not_do_is_recorded_in_sums_by_key_and_scope(
    limiter: SignIns, trail: Trail, clock: Clock
) -> None:
    for scope, path in (("admin", "/api/keys"), ("admin", "/api/audit"), ("metrics", "/metrics")):
        error = Forbidden("no")
        error.who, error.scope = OTHER, scope
        for _ in range(10):
            limiter.denied(error, "192.0.2.1", [], f"r-{path}", path)
            clock.now += 1
    await limiter.write()
    (admin, sum_of_both), (_, of_metrics) = trail.records
    assert (admin.who, admin.subject, admin.address) == ("12345678", "a key", "192.0.2.1")
    assert admin.request_id == "r-/api/keys"
    assert (sum_of_both.action, sum_of_both.target) == ("access.denied", "/api/audit")
    assert sum_of_both.after is not None
    assert of_metrics.after is not None
    assert (sum_of_both.after["count"], sum_of_both.after["scope"]) == (20, "admin")
    assert sum_of_both.after["last_at"] - sum_of_both.after["first_at"] == 19
    assert (of_metrics.after["count"], of_metrics.after["scope"]) == (10, "metrics")
