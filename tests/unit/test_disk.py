import threading

import pytest

from worker_manager.launchers.base import LauncherError
from worker_manager.launchers.disk import THREADS, Disk


async def test_a_disk_that_does_not_answer_is_an_error_for_as_long_as_it_lasts_and_for_nobody_else() -> None:
    dead, other, back = Disk("dead"), Disk("other"), threading.Event()
    try:
        for _ in range(THREADS + 1):  # more tries than there are threads to hang in it
            with pytest.raises(LauncherError, match=r"^the models folder does not answer within 0\.02 s: is its disk"):
                await dead.in_time("the models folder", back.wait, 0.02)
        assert await other.in_time("the models folder", lambda: 4) == 4
    finally:
        back.set()
    assert await dead.in_time("the models folder", lambda: 5) == 5
