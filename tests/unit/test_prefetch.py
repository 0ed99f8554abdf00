"""Which model is read next, and when a reader ends."""

from worker_manager.launchers.base import Unit, UnitKind
from worker_manager.prefetch import Begin, End, reader_id, step, told

NOTHING: frozenset[str] = frozenset()


def reader(model: str, *, running: bool = True) -> Unit:
    return Unit(id=reader_id(model), kind=UnitKind.READER, running=running, created_at=1.0, model=model)


def test_the_most_urgent_model_is_read_first_and_one_at_a_time() -> None:
    assert step([], ("local/a", "local/b"), NOTHING) == Begin("local/a")
    assert step([reader("local/a")], ("local/a", "local/b"), NOTHING) is None
    assert step([reader("local/b")], ("local/a", "local/b"), NOTHING) is None, "what has begun goes on"
    assert step([], ("local/a", "local/b"), frozenset({"local/a"})) == Begin("local/b")
    assert step([], ("local/a",), frozenset({"local/a"})) is None
    assert step([], (), NOTHING) is None


def test_a_reader_ends_when_it_has_read_or_when_nobody_wants_its_model_any_more() -> None:
    over = reader("local/a", running=False)
    assert step([over], ("local/a",), NOTHING) == End(over, done=True)
    vain = reader("local/b")
    assert step([vain], ("local/a",), NOTHING) == End(vain, done=False)


def test_what_a_reader_says_is_read_from_its_log() -> None:
    assert told(["a warning", '{"event": "done", "bytes_read": 5, "bytes_total": 7}']) == (5, 7)
    assert told(["{}", '{"event": "done"}']) == (0, 0)
