"""What engines have written is looked at for ever, whatever hangs."""

import asyncio
import os
import threading
from pathlib import Path
from typing import cast

import pytest

from tests.support.waiting import wait_until_async
from tests.unit.test_reconcile import spec
from worker_manager import disk_watch
from worker_manager.contract import Failure
from worker_manager.disk_use import Writable
from worker_manager.disk_watch import DiskWatch
from worker_manager.refusals import Refusals


class DeadFolder(os.PathLike[str]):
    """A folder on a disk that does not answer until `back` is set."""

    def __init__(self, folder: Path, back: threading.Event) -> None:
        self.folder = folder
        self.back = back

    def __fspath__(self) -> str:
        self.back.wait()
        return str(self.folder)


async def test_a_folder_whose_disk_hangs_is_named_and_the_others_are_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_watch, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(disk_watch, "LOOK_SHARE", 0)
    back = threading.Event()
    (tmp_path / "much").write_bytes(bytes(4096))
    places = (
        Writable(folder=cast("Path", DeadFolder(tmp_path, back)), bytes_max=1, name="its socket folder"),
        Writable(folder=tmp_path, bytes_max=1, name="its compile cache"),
    )
    ended: dict[str, Failure] = {}
    watch = DiskWatch(lambda: [spec()], lambda _: places, ended.__setitem__, Refusals(lambda: None), disk_seconds=0.2)
    task = asyncio.create_task(watch.run())
    try:
        await wait_until_async(lambda: bool(ended), "the other one was looked at")
    finally:
        back.set()
        task.cancel()
    assert "into its compile cache" in ended["w1"].message
    assert "its socket folder does not answer within 0.2 s" in capsys.readouterr().out
