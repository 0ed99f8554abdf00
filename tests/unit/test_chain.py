"""The audit trail of a real database file: append-only, chained, verified, and of one transaction with the change."""

import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.actor import Actor, acting
from gateway.audit.store import AuditStore, Wanted
from gateway.audit.verify import verify
from gateway.command import main
from gateway.database.chain import Change, differing
from gateway.database.connection import Database, IntegrityError

REST = 'subject, address, action, target, "from", "to", request_id, hash'
SOMEBODY = Actor(who="key1", subject="a person", address="192.0.2.7", request_id="r1")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """A closed database with five records."""
    database = await Database.open(tmp_path)
    audit = AuditStore(database)
    await audit.add((SOMEBODY, Change("endpoint.create", f"e{number}", None, {"gpus": number})) for number in range(5))
    await database.close()
    return database.path


def spoil(path: Path, *statements: str) -> None:
    """Change the file as somebody who may write it can."""
    connection = sqlite3.connect(path, isolation_level=None)
    for name in ("audit_never_changes", "audit_never_forgets", "audit_has_no_gap"):
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    connection.close()


async def test_a_record_says_who_did_what_to_what_from_where_and_by_which_request(database: Database) -> None:
    acting.set(SOMEBODY)
    await AuditStore(database).note("endpoint.change", "e", before={"a": 1, "b": 2}, after={"a": 1, "b": 3})
    (record,) = await AuditStore(database).page(Wanted(), 10)
    assert record[2:10] == ("key1", "a person", "192.0.2.7", "endpoint.change", "e", '{"b":2}', '{"b":3}', "r1")


async def test_change_and_record_are_written_together_or_not_at_all(database: Database) -> None:
    audit = AuditStore(database)

    async def change() -> None:
        async with database.transaction() as write:
            await write.audit(Change("endpoint.create", "e"))
            raise RuntimeError("afterwards")

    with pytest.raises(RuntimeError, match="afterwards"):
        await change()
    assert await audit.page(Wanted(), 10) == []
    await audit.note("endpoint.create", "e")
    assert verify(database.path).records == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET who = 'nobody' WHERE seq = 1",
        "DELETE FROM audit WHERE seq = 2",
        f"INSERT OR REPLACE INTO audit SELECT 1, at, 'other', {REST} FROM audit WHERE seq = 1",  # noqa: S608 - our own words
        f"INSERT INTO audit SELECT 9, at, who, {REST} FROM audit WHERE seq = 1",  # noqa: S608 - our own words
    ],
)
async def test_the_table_takes_nothing_but_the_next_record(database: Database, statement: str) -> None:
    audit = AuditStore(database)
    await audit.note("one", "a")
    await audit.note("two", "b")
    with pytest.raises(IntegrityError, match="append-only"):
        async with database.transaction() as write:
            await write.execute(statement)
    assert [record.action for record in await audit.page(Wanted(), 9)] == ["two", "one"]


@pytest.mark.parametrize(
    ("broken", "statement"),
    [
        (3, "UPDATE audit SET who = 'other' WHERE seq = 3"),
        (2, """UPDATE audit SET "to" = '{"gpus":8}' WHERE seq = 2"""),
        (5, "UPDATE audit SET at = at + 1 WHERE seq = 5"),
        (4, "UPDATE audit SET hash = zeroblob(32) WHERE seq = 4"),
        (1, "DELETE FROM audit WHERE seq = 1"),
        (4, "DELETE FROM audit WHERE seq = 4"),
        (5, "DELETE FROM audit WHERE seq = 5"),
        (1, "DELETE FROM audit"),
        (2, "UPDATE audit SET seq = CASE seq WHEN 2 THEN -3 WHEN 3 THEN -2 END WHERE seq IN (2, 3)"),
    ],
)
async def test_the_command_names_the_first_record_that_is_not_what_it_was(
    file: Path, capsys: pytest.CaptureFixture[str], broken: int, statement: str
) -> None:
    spoil(file, statement, "UPDATE audit SET seq = -seq WHERE seq < 0")
    assert verify(file).broken == broken
    with pytest.raises(SystemExit) as ended:
        main(["audit", "verify", str(file)])
    assert ended.value.code == 1
    assert f"record {broken} " in capsys.readouterr().out


async def test_a_trail_that_was_computed_anew_is_found_by_a_hash_that_was_kept(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["audit", "verify", str(file)])
    shown = re.search(r"5:[0-9a-f]{64}", capsys.readouterr().out)
    assert (ended.value.code, bool(shown)) == (0, True)
    forged = await Database.open(tmp_path / "forged")
    await AuditStore(forged).add((SOMEBODY, Change("endpoint.create", "other")) for _ in range(7))
    await forged.close()
    assert verify(forged.path).problem == ""
    assert shown is not None
    with pytest.raises(SystemExit) as ended:
        main(["audit", "verify", str(forged.path), "--anchor", shown[0]])
    assert ended.value.code == 1
    assert "record 5 has another hash" in capsys.readouterr().out


async def test_a_table_whose_guard_is_gone_is_not_called_whole(file: Path) -> None:
    spoil(file)
    assert "trigger" in verify(file).problem


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text"
    path.write_text("no database at all " * 100)
    for unusable in (path, tmp_path / "nowhere"):
        with pytest.raises(SystemExit) as ended:
            main(["audit", "verify", str(unusable)])
        assert ended.value.code == 2
        assert "cannot be checked" in capsys.readouterr().err


async def test_a_running_gateways_file_is_verified_beside_it(database: Database) -> None:
    for number in range(20):
        await AuditStore(database).note("endpoint.start", f"e{number}")
    assert verify(database.path).records == 20


async def test_records_are_found_by_what_they_say(database: Database) -> None:
    audit = AuditStore(database)
    other = Actor(who="key2", request_id="r2")
    await audit.add(
        [
            (SOMEBODY, Change("endpoint.create", "a")),
            (other, Change("endpoint.delete", "a")),
            (other, Change("endpoints", "b")),
            (other, Change("key.create", "k")),
        ]
    )

    async def found(**rules: object) -> list[int]:
        return [record.seq for record in await audit.page(Wanted(**rules), 10)]  # type: ignore[arg-type]

    assert await found(action="endpoint") == [2, 1]
    assert await found(action="endpoint.delete", who="key2") == [2]
    assert await found(target="a", before=2) == [1]
    assert await found(request_id="r2") == [4, 3, 2]
    assert await found(until=1.0) == []
    assert await found(since=1.0, action="key", target="k", who="key2", before=5) == [4]


async def test_neither_a_key_nor_a_value_of_any_size_gets_into_a_record(database: Database) -> None:
    audit = AuditStore(database)
    await audit.note("endpoint.create", "e", after={"labels": {"a": ["the key is hst_abcdefgh_secretsecret"]}})
    await audit.note("endpoint.create", "e", after={"labels": {"a": "x" * 100_000}})
    large, small = await audit.page(Wanted(), 2)
    assert "secretsecret" not in (small.after or "")
    assert len(large.after or "") < 200
    assert verify(database.path).records == 2


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, ({"b": 2}, {"b": 3})),
        ({"a": 1}, {"a": 1, "c": 3}, ({}, {"c": 3})),
        ({"a": 1}, {"a": 1}, ({}, {})),
        (None, {"a": 1}, (None, {"a": 1})),
        ({"a": 1}, None, ({"a": 1}, None)),
    ],
)
def test_of_a_change_only_what_differs_is_kept(
    before: dict[str, int] | None, after: dict[str, int] | None, shown: object
) -> None:
    assert differing(before, after) == shown
