"""Keys: made, checked, revoked and expired, with a real database file."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.access.credentials import digest, mint
from gateway.access.keyring import Keyring
from gateway.access.store import KeyStore
from gateway.database.connection import Database
from gateway.errors import Forbidden, NotFound, Unauthorized
from gateway.types import Scope

ADMIN_KEY = "an-admin-key-of-the-tests"
ALL = frozenset({"*"})
INFERENCE = frozenset({Scope.INFERENCE})


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def keyring(database: Database, clock: Clock) -> Keyring:
    made = Keyring(KeyStore(database), ADMIN_KEY, clock)
    await made.load()
    return made


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", b"Bearer " + key.encode())]


def why_not(keyring: Keyring, key: str) -> str:
    with pytest.raises(Unauthorized) as caught:
        keyring.authenticate(bearer(key))
    assert key not in caught.value.message
    return caught.value.message


async def test_the_admin_key_of_the_environment_may_do_everything(keyring: Keyring) -> None:
    who = keyring.authenticate(bearer(ADMIN_KEY))
    assert all(who.may(scope) for scope in Scope)
    assert who.may_use("anything")
    assert await keyring.all() == []


async def test_a_new_key_is_known_at_once_and_after_a_restart(keyring: Keyring, database: Database) -> None:
    stored, key = await keyring.create("app", INFERENCE, frozenset({"a"}), None)
    again = Keyring(KeyStore(database), ADMIN_KEY)
    await again.load()
    for ring in (keyring, again):
        who = ring.authenticate(bearer(key))
        assert (who.key_id, who.name) == (stored.id, "app")
        assert who.may_use("a")
        assert not who.may_use("b")


async def test_a_key_without_the_scope_is_refused_and_admin_has_every_scope(keyring: Keyring) -> None:
    _, key = await keyring.create("app", INFERENCE, ALL, None)
    assert keyring.authorize(bearer(key), Scope.INFERENCE)
    with pytest.raises(Forbidden, match="no scope 'endpoints'"):
        keyring.authorize(bearer(key), Scope.ENDPOINTS)
    _, admin = await keyring.create("boss", frozenset({Scope.ADMIN}), ALL, None)
    assert keyring.authorize(bearer(admin), Scope.METRICS)


async def test_a_revoked_key_is_refused_from_the_next_request_on(keyring: Keyring) -> None:
    stored, key = await keyring.create("app", INFERENCE, ALL, None)
    _, other = await keyring.create("other", INFERENCE, ALL, None)
    await keyring.revoke(stored.id)
    assert "is not known" in why_not(keyring, key)
    assert keyring.authenticate(bearer(other))
    with pytest.raises(NotFound, match=stored.id):
        await keyring.revoke(stored.id)


async def test_the_admin_key_cannot_be_revoked(keyring: Keyring) -> None:
    with pytest.raises(NotFound):
        await keyring.revoke("admin")
    assert keyring.authenticate(bearer(ADMIN_KEY))


async def test_a_key_expires_at_its_time(keyring: Keyring, clock: Clock) -> None:
    _, key = await keyring.create("brief", INFERENCE, ALL, 1_010.0)
    clock.now = 1_009.9
    assert keyring.authenticate(bearer(key))
    clock.now = 1_010.0
    assert "has expired" in why_not(keyring, key)


async def test_a_key_that_is_not_known_and_one_that_was_not_copied_whole_are_told_apart(keyring: Keyring) -> None:
    _, stranger = mint()
    assert "well-formed" not in why_not(keyring, stranger)
    assert "not even well-formed" in why_not(keyring, stranger[:-1])


async def test_no_credential_says_which_header_is_missing(keyring: Keyring) -> None:
    with pytest.raises(Unauthorized, match="Authorization: Bearer"):
        keyring.authenticate([])


async def test_what_is_stored_is_no_key(keyring: Keyring, database: Database) -> None:
    stored, key = await keyring.create("app", INFERENCE, ALL, None)
    assert stored.digest == digest(key)
    why_not(keyring, stored.digest.hex())
    await database.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    assert key.encode() not in database.path.read_bytes()
