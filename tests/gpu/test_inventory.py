"""Real GPUs: what the manager says of them is what nvidia-smi says."""

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
