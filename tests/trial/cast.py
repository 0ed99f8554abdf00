"""Six models that two cards of 24 GiB can't hold at once, and at which pace a trial goes. Pure."""

from dataclasses import dataclass, field

from tests.engine_simulator.configuration import Faults, Simulation

CARD_MIB = 24_576
CARD_COUNT = 2
RESIDUAL_MIB = 700.0
IMPORTS = 0.4
"""Part of a load in which an engine holds no GPU memory yet, though the card is promised."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One endpoint, the most popular first; `load` is a part of the pace's longest load."""

    name: str
    gib: int
    """On each of its cards."""
    load: float
    seed: int
    """Its answers are nobody else's."""
    gpus: int = 1
    max_workers: int = 1
    sleep: str = "auto"
    steady: bool = False
    """Asked for all the time; the others have their hours."""
    weights_mib: int = 300


MODELS = (
    Model(name="atlas", gib=8, load=0.5, seed=1, max_workers=2, steady=True),
    Model(name="birch", gib=9, load=0.6, seed=2),
    Model(name="cedar", gib=12, load=0.7, seed=3, sleep="level2"),
    Model(name="delta", gib=14, load=0.8, seed=4),
    Model(name="ember", gib=20, load=1.0, seed=5),
    Model(name="fjord", gib=10, load=0.8, seed=6, gpus=2, sleep="off"),
)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long things take and how often they happen; seconds, and requests a second."""

    load: float
    """The longest load."""
    sleep: float
    wake: float
    queue: float
    """Longest wait of a request for a worker."""
    rate: float
    burst_every: float
    burst_size: int
    tokens: tuple[int, int]
    """Least and most tokens of an answer."""
    tokens_per_second: float
    slow_load: float
    """What a slow load takes longer."""
    linger: float
    """For how long memory is not given back."""
    pause: tuple[float, float]
    """Between two faults of one lane."""
    lanes: int
    faults_until: float
    """Part of the trial after which no fault begins any more."""
    plan: dict[str, int]
    """How often each kind of fault is injected."""
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def answer(self) -> float:
        """The longest answer."""
        return self.tokens[1] / self.tokens_per_second


FULL = Pace(
    load=5.0,
    sleep=0.6,
    wake=0.5,
    queue=240.0,
    rate=4.0,
    burst_every=40.0,
    burst_size=30,
    tokens=(4, 90),
    tokens_per_second=45.0,
    slow_load=12.0,
    linger=25.0,
    pause=(3.0, 9.0),
    lanes=2,
    faults_until=0.92,
    plan={
        "killed": 4,
        "crashed": 3,
        "removed": 2,
        "hung": 4,
        "wake_differs": 2,
        "wake_refused": 1,
        "wake_hangs": 1,
        "slow_load": 4,
        "stuck_load": 1,
        "sleep_keeps_memory": 2,
        "exit_keeps_memory": 4,
        "manager_killed": 1,
    },
    settings={
        "HOSTLER_LOAD_SECONDS": "25",
        "HOSTLER_SLEEP_SECONDS": "10",
        "HOSTLER_WAKE_SECONDS": "8",
        "HOSTLER_CANARY_SECONDS": "6",
        "HOSTLER_CANARY_TIMEOUT_SECONDS": "3",
        "HOSTLER_CANARY_TRIES": "2",
        "HOSTLER_STREAM_GRACE_SECONDS": "2",
        "HOSTLER_HEARTBEAT_SECONDS": "5",
    },
)
BRIEF = Pace(
    load=0.8,
    sleep=0.2,
    wake=0.2,
    queue=8.0,
    rate=7.0,
    burst_every=8.0,
    burst_size=15,
    tokens=(4, 40),
    tokens_per_second=60.0,
    slow_load=3.0,
    linger=4.0,
    pause=(0.0, 0.5),
    lanes=3,
    faults_until=4.0,
    plan={"killed": 1, "hung": 1, "wake_differs": 1, "slow_load": 1, "exit_keeps_memory": 1},
    settings={
        "HOSTLER_LOAD_SECONDS": "20",
        "HOSTLER_SLEEP_SECONDS": "8",
        "HOSTLER_WAKE_SECONDS": "8",
        "HOSTLER_CANARY_SECONDS": "2",
        "HOSTLER_CANARY_TIMEOUT_SECONDS": "2",
        "HOSTLER_CANARY_TRIES": "2",
        "HOSTLER_STREAM_GRACE_SECONDS": "1",
        "HOSTLER_HEARTBEAT_SECONDS": "1",
    },
)
"""All of it in half a minute: what CI has time for."""


def simulation(
    model: Model, pace: Pace, faults: Faults | None = None, faulty_before: float | None = None
) -> Simulation:
    """How a model's engines behave."""
    return Simulation(
        seed=model.seed,
        load_seconds=model.load * pace.load * (1 - IMPORTS),
        import_seconds=model.load * pace.load * IMPORTS,
        tokens_per_second=pace.tokens_per_second,
        ttft_seconds=0.05,
        weights_mib=float(model.weights_mib),
        residual_mib=RESIDUAL_MIB,
        sleep_seconds=pace.sleep,
        wake_seconds=pace.wake,
        faults=faults or Faults(),
        faulty_before=faulty_before,
    )
