"""Keys: made, checked, changed, rotated, revoked and expired, with a real database file."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.credentials import digest, id_of, mint
from gateway.access.keyring import Keyring
from gateway.access.store import KeyStore
from gateway.access.types import AccessEvent, KeySpec
from gateway.database.connection import Database
from gateway.errors import BadRequest, Forbidden, NotFound, Unauthorized
from gateway.types import Priority, Scope

ADMIN_KEY = "an-admin-key-of-the-tests"
ADMIN = frozenset({Scope.ADMIN})


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


class CountedKeys(dict[str, object]):
    """The keys of a ring, and how often anybody looked for one."""

    looks = 0

    def get(self, key: str, default: object = None) -> object:
        self.looks += 1
        return super().get(key, default)


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


async def reloaded(database: Database, clock: Clock) -> Keyring:
    """A ring as another process would make it out of the same file."""
    again = Keyring(KeyStore(database), ADMIN_KEY, clock)
    await again.load()
    return again


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"host": b"x", b"authorization": b"Bearer " + key.encode()}


def why_not(keyring: Keyring, key: str) -> str:
    with pytest.raises(Unauthorized) as caught:
        keyring.authenticate(bearer(key))
    assert key not in caught.value.message
    return caught.value.message


async def test_the_admin_key_of_the_environment_may_do_everything(keyring: Keyring) -> None:
    who = keyring.authenticate(bearer(ADMIN_KEY))
    assert all(who.may(scope) for scope in Scope)
    assert who.may_use("anything")
    assert keyring.all() == []


async def test_an_admin_key_that_looks_like_one_of_ours_opens_too(database: Database) -> None:
    _, own = mint()
    ring = Keyring(KeyStore(database), own)
    assert ring.authenticate(bearer(own)).may(Scope.ADMIN)
    stored, key = await ring.create(KeySpec(name="app"))
    assert ring.authenticate(bearer(key)).key_id == stored.id


async def test_a_new_key_is_known_at_once_and_after_a_restart(
    keyring: Keyring, database: Database, clock: Clock
) -> None:
    stored, key = await keyring.create(KeySpec(name="app", endpoints=frozenset({"a"}), priority="batch"))
    for ring in (keyring, await reloaded(database, clock)):
        who = ring.authenticate(bearer(key))
        assert (who.key_id, who.name, who.priority) == (stored.id, "app", Priority.BATCH)
        assert who.may_use("a")
        assert not who.may_use("b")


async def test_a_key_of_before_limits_and_rotation_opens_still(database: Database, clock: Clock) -> None:
    key_id, key = mint()
    async with database.transaction() as write:
        await write.execute(
            "INSERT INTO keys (id, name, digest, scopes, endpoints, created_at, expires_at) VALUES (?,?,?,?,?,?,?)",
            (key_id, "old", digest(key.encode()), '["inference"]', '["*"]', 1.0, None),
        )
    who = (await reloaded(database, clock)).authenticate(bearer(key))
    assert (who.key_id, who.priority) == (key_id, Priority.INTERACTIVE)


async def test_a_key_without_the_scope_is_refused_and_admin_has_every_scope(keyring: Keyring) -> None:
    _, key = await keyring.create(KeySpec(name="app"))
    assert keyring.authorize(bearer(key), Scope.INFERENCE)
    with pytest.raises(Forbidden, match="no scope 'endpoints'"):
        keyring.authorize(bearer(key), Scope.ENDPOINTS)
    _, admin = await keyring.create(KeySpec(name="boss", scopes=ADMIN))
    assert keyring.authorize(bearer(admin), Scope.METRICS)


async def test_a_revoked_key_is_refused_from_the_next_request_on(
    keyring: Keyring, database: Database, clock: Clock
) -> None:
    stored, key = await keyring.create(KeySpec(name="app"))
    _, other = await keyring.create(KeySpec(name="other"))
    await keyring.revoke(stored.id)
    for ring in (keyring, await reloaded(database, clock)):
        assert "is not known" in why_not(ring, key)
        assert ring.authenticate(bearer(other))
    with pytest.raises(NotFound, match=stored.id):
        await keyring.revoke(stored.id)


async def test_the_admin_key_cannot_be_revoked(keyring: Keyring) -> None:
    with pytest.raises(NotFound):
        await keyring.revoke("admin")
    assert keyring.authenticate(bearer(ADMIN_KEY))


async def test_a_key_expires_at_its_time(keyring: Keyring, clock: Clock) -> None:
    _, key = await keyring.create(KeySpec(name="brief", expires_at=1_010.0))
    clock.now = 1_009.9
    assert keyring.authenticate(bearer(key))
    clock.now = 1_010.0
    assert "has expired" in why_not(keyring, key)


async def test_a_change_is_felt_by_the_next_request_and_kept(
    keyring: Keyring, database: Database, clock: Clock
) -> None:
    stored, key = await keyring.create(KeySpec(name="app", expires_at=1_010.0))
    await keyring.change(stored.id, {"endpoints": ["a"], "expires_at": None, "scopes": ["inference", "metrics"]})
    clock.now = 2_000.0
    for ring in (keyring, await reloaded(database, clock)):
        who = ring.authorize(bearer(key), Scope.METRICS)
        assert (who.name, who.may_use("a"), who.may_use("b")) == ("app", True, False)


@pytest.mark.parametrize(
    "patch",
    [
        {"scopes": []},
        {"expires_at": 999.0},
        {"expires_at": 1_795_473_846_377},
        {"name": ""},
        {"id": "x"},
        {"digest": ""},
        {"priority": "urgent"},
    ],
    ids=str,
)
async def test_a_change_that_does_not_fit_changes_nothing(keyring: Keyring, patch: dict[str, object]) -> None:
    stored, key = await keyring.create(KeySpec(name="app"))
    with pytest.raises(BadRequest):
        await keyring.change(stored.id, patch)
    assert keyring.get(stored.id) == stored
    assert keyring.authenticate(bearer(key)).name == "app"


async def test_a_rotated_key_and_its_predecessor_both_open_until_the_overlap_ends(
    keyring: Keyring, database: Database, clock: Clock
) -> None:
    stored, old = await keyring.create(KeySpec(name="app"))
    rotated, new = await keyring.rotate(stored.id, 60.0)
    assert (id_of(old.encode()), id_of(new.encode())) == (stored.id, stored.id)
    assert rotated.previous_until == 1_060.0
    for ring in (keyring, await reloaded(database, clock)):
        clock.now = 1_059.9
        assert ring.authenticate(bearer(new)) == ring.authenticate(bearer(old))
        clock.now = 1_060.0
        assert "is not known" in why_not(ring, old)
        assert ring.authenticate(bearer(new))


async def test_a_second_rotation_ends_the_first_key_at_once_and_no_overlap_ends_the_second(keyring: Keyring) -> None:
    stored, first = await keyring.create(KeySpec(name="app"))
    _, second = await keyring.rotate(stored.id, 60.0)
    _, third = await keyring.rotate(stored.id, 60.0)
    why_not(keyring, first)
    assert keyring.authenticate(bearer(second))
    _, fourth = await keyring.rotate(stored.id, 0.0)
    for gone in (first, second, third):
        why_not(keyring, gone)
    assert keyring.authenticate(bearer(fourth))


async def test_a_key_that_is_not_known_and_one_that_was_not_copied_whole_are_told_apart(keyring: Keyring) -> None:
    _, stranger = mint()
    assert "well-formed" not in why_not(keyring, stranger)
    assert "not even well-formed" in why_not(keyring, stranger[:-1])


async def test_a_right_id_with_another_secret_opens_nothing(keyring: Keyring) -> None:
    stored, _ = await keyring.create(KeySpec(name="app"))
    _, forged = mint(stored.id)
    assert "is not known" in why_not(keyring, forged)


@given(st.binary(max_size=80).map(lambda made: b"hst_" + made))
async def test_what_is_not_well_formed_is_looked_up_nowhere(made: bytes) -> None:
    ring = Keyring(KeyStore(None), ADMIN_KEY)  # type: ignore[arg-type]  # no database: nothing could be asked
    counted = CountedKeys()
    ring._known = counted  # type: ignore[assignment]  # as above
    with pytest.raises(Unauthorized):
        ring.authenticate({b"authorization": b"Bearer " + made})
    assert counted.looks == 0


async def test_no_credential_says_which_header_is_missing(keyring: Keyring) -> None:
    with pytest.raises(Unauthorized, match="Authorization: Bearer"):
        keyring.authenticate({})


async def test_what_is_stored_is_no_key(keyring: Keyring, database: Database) -> None:
    stored, key = await keyring.create(KeySpec(name="app"))
    assert stored.digest == digest(key.encode())
    why_not(keyring, stored.digest.hex())
    await database.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    assert key.encode() not in database.path.read_bytes()


async def test_last_use_is_written_for_all_keys_at_once(keyring: Keyring, database: Database, clock: Clock) -> None:
    used, key = await keyring.create(KeySpec(name="used"))
    idle, _ = await keyring.create(KeySpec(name="idle"))
    keyring.authenticate(bearer(key))
    clock.now = 1_005.0
    assert keyring.get(used.id).last_used_at is None
    await keyring.write_used()
    again = await reloaded(database, clock)
    for ring in (keyring, again):
        assert (ring.get(used.id).last_used_at, ring.get(idle.id).last_used_at) == (1_005.0, None)


async def test_whoever_audits_is_told_of_failed_sign_ins_and_of_every_change(keyring: Keyring) -> None:
    told: list[AccessEvent] = []
    keyring.noticed = told.append
    stored, key = await keyring.create(KeySpec(name="app"))
    await keyring.change(stored.id, {"name": "other"})
    await keyring.rotate(stored.id, 0.0)
    why_not(keyring, key)
    await keyring.revoke(stored.id)
    why_not(keyring, "made up")
    with pytest.raises(Unauthorized):
        keyring.authenticate({})
    names = [(event.before.name if event.before else "", event.after.name if event.after else "") for event in told]
    assert [(event.what, event.key_id, event.reason) for event in told] == [
        ("key_created", stored.id, ""),
        ("key_changed", stored.id, ""),
        ("key_rotated", stored.id, ""),
        ("sign_in_failed", stored.id, "unknown"),
        ("key_revoked", stored.id, ""),
        ("sign_in_failed", "", "malformed"),
        ("sign_in_failed", "", "missing"),
    ]
    assert names[:3] + names[4:5] == [("", "app"), ("app", "other"), ("other", "other"), ("other", "")]


async def test_a_credential_that_is_kept_opens_what_its_headers_open_now(keyring: Keyring, clock: Clock) -> None:
    """A connection takes the credential out of a head once; whether it opens is asked for each request."""
    told: list[AccessEvent] = []
    stored, key = await keyring.create(KeySpec(name="app", expires_at=2_000.0))
    texts = [key, key[:-1], "eyJ.a.b", ADMIN_KEY, mint()[1]]
    kept = [keyring.credential(bearer(text)) for text in texts]
    keyring.noticed = told.append

    def outcomes(scope: Scope) -> list[str]:
        """Of each credential, which must be the same whether it was kept or not."""
        seen = []
        for text, credential in zip(texts, kept, strict=True):
            answers = []
            for check in (
                lambda c=credential: keyring.verify(c, scope),
                lambda t=text: keyring.authorize(bearer(t), scope),
            ):
                before = len(told)
                try:
                    answer = check().key_id
                except (Unauthorized, Forbidden) as error:
                    answer = error.message
                answers.append((answer, told[before:]))
            assert answers[0] == answers[1]
            seen.append(answers[0][0])
        return seen

    others = outcomes(Scope.INFERENCE)[1:]
    assert others[2] == "admin"
    assert outcomes(Scope.INFERENCE)[0] == stored.id
    assert "no scope 'metrics'" in outcomes(Scope.METRICS)[0]
    await keyring.change(stored.id, {"scopes": ["metrics"]})
    assert outcomes(Scope.METRICS)[0] == stored.id
    assert "no scope 'inference'" in outcomes(Scope.INFERENCE)[0]
    await keyring.change(stored.id, {"scopes": ["inference"]})
    await keyring.rotate(stored.id, 10.0)
    assert outcomes(Scope.INFERENCE)[0] == stored.id
    clock.now += 10.0
    assert "is not known" in outcomes(Scope.INFERENCE)[0]
    _, key = await keyring.rotate(stored.id, 0.0)
    texts[0], kept[0] = key, keyring.credential(bearer(key))
    assert outcomes(Scope.INFERENCE)[0] == stored.id
    clock.now = 2_000.0
    assert "has expired" in outcomes(Scope.INFERENCE)[0]
    await keyring.change(stored.id, {"expires_at": None})
    assert outcomes(Scope.INFERENCE) == [stored.id, *others]
    await keyring.revoke(stored.id)
    assert "is not known" in outcomes(Scope.INFERENCE)[0]
    assert keyring.credential({}) is None
