"""The endpoints' use of GPUs in the database: sums by day, for good."""

from collections.abc import Mapping

from gateway.database.connection import Database
from gateway.usage.types import By, GpuSum, WantedDays

ADD = (
    "INSERT INTO gpu_days (day, endpoint, gpu_ms, gpu_cost, energy_mj, energy_cost) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (day, endpoint) DO UPDATE SET "
    "gpu_ms = gpu_ms + excluded.gpu_ms, "
    "gpu_cost = gpu_cost + excluded.gpu_cost, "
    # what nobody told stays null, and is not added to what somebody did
    "energy_mj = coalesce(energy_mj + excluded.energy_mj, energy_mj, excluded.energy_mj), "
    "energy_cost = coalesce(energy_cost + excluded.energy_cost, energy_cost, excluded.energy_cost)"
)
GROUPED = {By.ENDPOINT: "endpoint", By.DAY: "day"}


class GpuStore:
    """Reads and writes the table `gpu_days`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, sums: Mapping[tuple[str, str], GpuSum]) -> None:
        """Add sums by day and endpoint to what is there, all or none. Raises DatabaseError."""
        rows = [(*group, *one.whole()) for group, one in sums.items()]
        async with self._database.transaction() as write:
            await write.execute_many(ADD, rows)

    async def sums(self, by: By, wanted: WantedDays) -> dict[str, GpuSum]:
        """Sums by endpoint or day, of all keys together."""
        column = GROUPED[by]
        rows = await self._database.rows(
            f"SELECT {column}, total(gpu_ms), total(gpu_cost), sum(energy_mj), "  # noqa: S608 - our own names
            "CASE WHEN count(energy_cost) THEN total(energy_cost) END FROM gpu_days "
            "WHERE day BETWEEN :first AND :last AND (:endpoint IS NULL OR endpoint = :endpoint) "
            f"GROUP BY {column}",
            wanted._asdict(),
        )
        return {
            str(name): GpuSum(gpu_ms, int(gpu_cost), energy_mj, None if energy_cost is None else int(energy_cost))
            for name, gpu_ms, gpu_cost, energy_mj, energy_cost in rows
        }
