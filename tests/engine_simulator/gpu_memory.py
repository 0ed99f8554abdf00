"""The engine's memory on simulated cards: vLLM's check at the start, its failures, sleep and wake."""

from collections.abc import Mapping

from tests.engine_simulator.command_line import EngineArguments
from tests.engine_simulator.configuration import Simulation
from tests.engine_simulator.failures import EngineStartError
from tests.testbed.simulated_gpus import claims

MIB_PER_GIB = 1024
BYTES_PER_MIB = 1 << 20
OVERHEAD_MIB = 300
"""What CUDA and the activations take beside weights and KV cache, where the KV size is given exactly."""


class GpuMemory:
    """What this engine holds on its cards; nothing at all on a machine without a simulated GPU host."""

    def __init__(self, arguments: EngineArguments, environment: Mapping[str, str]) -> None:
        self._arguments = arguments
        self._folder = claims.find_folder(environment)
        self._held: list[claims.HeldClaim] = []
        self._full_mib: dict[str, float] = {}
        self._cards: list[claims.Card] = []
        if self._folder is not None:
            self._cards = claims.visible_cards(self._folder, environment)

    @property
    def held_mib(self) -> float:
        """MiB held on each card, the largest; 0 without a GPU."""
        return max((claim.memory_mib for claim in self._held), default=0.0)

    @property
    def has_gpu(self) -> bool:
        """Whether this engine runs on simulated cards; else it plays vLLM on a CPU."""
        return bool(self._cards)

    def claim(self, simulation: Simulation) -> None:
        """Take what the flags ask for, on as many cards as tensor parallelism says. Raises `EngineStartError`."""
        folder, wanted_cards = self._folder, self._arguments.tensor_parallel_size
        if folder is None or not self._cards:
            return
        if wanted_cards > len(self._cards):
            raise EngineStartError(
                f"ValueError: World size ({wanted_cards}) is larger than the number of available GPUs "
                f"({len(self._cards)}) in this node. If this is intentional and you are using: ray, set '--distributed"
                "-executor-backend ray'."
            )
        with claims.locked(folder):
            claims.remove_dead_claims(folder)
            for position, card in enumerate(self._cards[:wanted_cards]):
                wanted = self._wanted_mib(card, simulation)
                self._check(position, card, claims.used_mib(folder, card.uuid), wanted)
                self._full_mib[card.uuid] = wanted
                self._held.append(claims.HeldClaim(folder, card.uuid, wanted))

    def sleep(self, residual_mib: float) -> None:
        """Give back all but the residual."""
        for held in self._held:
            held.resize(min(residual_mib, held.memory_mib))

    def wake(self) -> None:
        """Take it all again. Raises `EngineStartError` if somebody else has it now."""
        if self._folder is None or not self._held:
            return
        with claims.locked(self._folder):
            for position, (held, card) in enumerate(zip(self._held, self._cards, strict=False)):
                missing = self._full_mib[card.uuid] - held.memory_mib
                free = card.memory_total_mib - claims.used_mib(self._folder, card.uuid)
                if missing > free:
                    raise EngineStartError(_out_of_memory(position, card, free, missing))
                held.resize(self._full_mib[card.uuid])

    def _wanted_mib(self, card: claims.Card, simulation: Simulation) -> float:
        if simulation.claim_mib is not None:
            return simulation.claim_mib
        if self._arguments.kv_cache_memory_bytes is not None:
            return simulation.weights_mib + OVERHEAD_MIB + self._arguments.kv_cache_memory_bytes / BYTES_PER_MIB
        return card.memory_total_mib * self._arguments.gpu_memory_utilization

    def _check(self, position: int, card: claims.Card, used: float, wanted: float) -> None:
        total, free = card.memory_total_mib, card.memory_total_mib - used
        share = self._arguments.gpu_memory_utilization
        # vLLM checks the share even where the KV size is given exactly
        if total * share > free:
            raise EngineStartError(
                f"ValueError: Free memory on device cuda:{position} ({_gib(free)}/{_gib(total)} GiB) on startup is"
                f" less than desired GPU memory utilization ({share}, {_gib(total * share)} GiB). Decrease GPU memory "
                "utilization or reduce GPU memory used by other processes."
            )
        if wanted > free:
            raise EngineStartError(_out_of_memory(position, card, free, wanted))


def _out_of_memory(position: int, card: claims.Card, free: float, wanted: float) -> str:
    return (
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {_gib(wanted)} GiB. GPU {position} has a total "
        f"capacity of {_gib(card.memory_total_mib)} GiB of which {_gib(free)} GiB is free."
    )


def _gib(mib: float) -> str:
    return f"{mib / MIB_PER_GIB:.2f}".rstrip("0").rstrip(".")
