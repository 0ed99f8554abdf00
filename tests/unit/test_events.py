"""The ring of events: who listens when gets what."""

import asyncio

from gateway.events import Events, Kind


def numbers(events: Events, after: int) -> list[int]:
    return [event.number for event in events.after(after)[0]]


def filled(count: int, kept: int = 5) -> Events:
    events = Events(kept, clock=lambda: 7.0)
    for number in range(count):
        events.publish(Kind.WORKER, "a", step=number)
    return events


async def test_events_are_numbered_and_each_listener_reads_on_from_its_own_place() -> None:
    events = filled(3)
    assert numbers(events, 0) == [1, 2, 3]
    assert numbers(events, 2) == [3]
    assert numbers(events, 3) == []
    (last,) = events.after(2)[0]
    assert (last.at, last.kind, last.endpoint, last.what) == (7.0, Kind.WORKER, "a", {"step": 2})


async def test_the_ring_is_bounded_and_who_was_too_slow_is_told() -> None:
    events = filled(12)
    assert numbers(events, 0) == [8, 9, 10, 11, 12]
    assert events.after(0)[1]
    assert events.after(6)[1]
    assert not events.after(7)[1], "nothing between 7 and 8 is lacking"
    assert not events.after(11)[1]


async def test_nothing_has_happened_yet_is_nothing_missed() -> None:
    assert filled(0).after(0) == ([], False)


async def test_waiting_ends_with_the_next_event_with_the_time_or_with_the_end_of_the_process() -> None:
    events = filled(1)
    await events.wait(0, 60)
    for happens in (lambda: events.publish(Kind.MANAGER, None, connected=True), events.close):
        waiting = asyncio.create_task(events.wait(events.newest, 60))
        await asyncio.sleep(0)
        assert not waiting.done()
        happens()
        async with asyncio.timeout(5):
            await waiting
    await events.wait(events.newest, 60)
    fresh = filled(0)
    await fresh.wait(0, 0.001)


async def test_each_life_of_the_process_has_another_name() -> None:
    assert Events().life != Events().life
