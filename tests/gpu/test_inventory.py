"""Real GPUs: what the manager says of them is what nvidia-smi says."""

import asyncio
import csv
import io
import subprocess

from worker_manager.gpus import GpuInventory


def nvidia_smi() -> dict[str, tuple[int, int]]:
    """Index and total MiB by UUID, out of NVIDIA's own tool."""
    query = ["nvidia-smi", "--query-gpu=uuid,index,memory.total", "--format=csv,noheader,nounits"]
    text = subprocess.run(query, check=True, capture_output=True, text=True, timeout=30).stdout
    rows = csv.reader(io.StringIO(text), skipinitialspace=True)
    return {uuid: (int(index), int(total)) for uuid, index, total in rows}


async def test_the_inventory_names_the_cards_that_nvidia_smi_names() -> None:
    inventory = GpuInventory()
    try:
        found = {gpu.uuid: (gpu.index, gpu.memory_total_mib) for gpu in await inventory.read()}
    finally:
        inventory.close()
    assert found == nvidia_smi()


async def test_the_energy_of_each_card_grows() -> None:
    inventory = GpuInventory()

    async def energy() -> list[int]:
        return [gpu.energy_mj for gpu in await inventory.read() if gpu.energy_mj is not None]

    try:
        before = await energy()
        assert len(before) == len(nvidia_smi()), "a card that does not tell its energy: Volta and later do"
        after = before
        async with asyncio.timeout(30):
            while not all(now > then for now, then in zip(after, before, strict=True)):
                after = await energy()
    finally:
        inventory.close()
