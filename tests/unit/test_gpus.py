"""What an inventory says where NVML tells nothing: that there are no GPUs, or that nobody knows."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from worker_manager import gpus
from worker_manager.gpus import GpuInventory

ERRORS = {name: getattr(pynvml, name) for name in ("NVMLError_DriverNotLoaded", "NVMLError_LibraryNotFound")}


def library(begin: Callable[[], object]) -> SimpleNamespace:
    """NVML with no card, and this for its beginning."""
    return SimpleNamespace(
        nvmlInit=begin,
        nvmlSystemGetDriverVersion=lambda: "580",
        nvmlDeviceGetCount=lambda: 0,
        NVMLError=pynvml.NVMLError,
        **ERRORS,
    )


@pytest.mark.parametrize(
    ("error", "has_driver", "problem"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, True, ""),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, False, ""),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, True, "NVML fails (Driver Not Loaded)"),
        (pynvml.NVML_ERROR_UNKNOWN, False, "NVML fails (Unknown Error)"),
    ],
)
async def test_only_where_there_is_nothing_to_ask_there_are_no_gpus(
    tmp_path: Path, *, error: int, has_driver: bool, problem: str
) -> None:
    def begin() -> None:
        for one in errors:
            raise pynvml.NVMLError(one)

    errors = [error]
    inventory = GpuInventory(library(begin), tmp_path if has_driver else tmp_path / "none")
    assert (await inventory.read(), inventory.problem) == ((), problem)
    errors.clear()
    assert (await inventory.read(), inventory.problem) == ((), "")
    inventory.close()


async def test_nobody_knows_while_nvml_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "READ_SECONDS", 0.02)
    back = threading.Event()
    inventory = GpuInventory(library(back.wait))
    try:
        await inventory.read()
        assert inventory.problem == "NVML does not answer within 0.02 s"
    finally:
        back.set()
    monkeypatch.setattr(gpus, "READ_SECONDS", 5.0)
    await inventory.read()
    assert inventory.problem == ""
    inventory.close()
