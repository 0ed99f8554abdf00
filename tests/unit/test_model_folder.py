import threading
from pathlib import Path

import pytest

from worker_manager.launchers.base import LauncherError
from worker_manager.launchers.model_folder import THREADS, in_time, resolve


async def test_a_disk_that_does_not_answer_is_an_error_for_as_long_as_it_lasts() -> None:
    back = threading.Event()
    try:
        for _ in range(THREADS + 1):  # more tries than there are threads to hang in it
            with pytest.raises(LauncherError, match="does not answer within"):
                await in_time(back.wait, 0.02)
    finally:
        back.set()
    assert await in_time(lambda: 5) == 5


def test_a_model_is_found_through_links_and_one_outside_is_seen_to_be(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "local" / "real").mkdir(parents=True)
    (models / "local" / "link").symlink_to("real")
    (models / "local" / "out").symlink_to(tmp_path)
    assert resolve(models, "local/link") == "local/real"
    assert resolve(models, "local/out") == ".."
    assert resolve(models, "local/none") is None
