"""What a load took is known to the gateway that comes after a restart."""

from pathlib import Path

from gateway.database.connection import Database
from gateway.load_times import LoadTimes


async def test_the_last_time_of_each_endpoint_outlives_the_process_and_not_the_endpoint(tmp_path: Path) -> None:
    database = await Database.open(tmp_path)
    times = LoadTimes(database)
    assert await times.load(["a"]) == {}
    for endpoint, seconds in (("a", 40.0), ("b", 7.0), ("a", 20.0)):
        times.note(endpoint, seconds)
        await times.save()
    await database.close()
    database = await Database.open(tmp_path)
    assert await LoadTimes(database).load(["a"]) == {"a": 20.0}
    assert await LoadTimes(database).load(["a", "b"]) == {"a": 20.0}, "the time of one that is gone is forgotten"
    await database.close()
