"""The shape of an endpoint as users write it (API.md, Endpoints)."""

from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from gateway.memory.config import ModelShape
from gateway.memory.weights import Weights
from gateway.prices import Price
from gateway.types import Allowable, Limits
from worker_manager.contract import Failure, LoraRoom
from worker_manager.engine_flags import FlagValue

# \Z and not $, which would let a line feed in at the end
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@-]*(/[A-Za-z0-9_:@-][A-Za-z0-9._:@-]*)*\Z"
"""Nothing in it that is lost in a path: no slash at its end, no two in a row, no part that begins with a dot."""
NAME_MAX = 128
MODEL_PATTERN = r"^(?!local/[^A-Za-z0-9])[A-Za-z0-9][\w.-]{0,95}/(?!\.{1,2}\Z)[\w.-]{1,96}\Z"
"""No name made of dots alone: that would be a folder above. The worker manager takes no hidden folder under local/."""

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, max_length=NAME_MAX)]


class AdapterSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a LoRA adapter's files come from."""

    model: Annotated[str, msgspec.Meta(pattern=MODEL_PATTERN)]
    """`local/NAME`, a folder under the models folder, or a hub repository `ORG/NAME`."""
    revision: Annotated[str, msgspec.Meta(pattern=r"^[\w][\w./-]{0,127}\Z")] | None = None

    def is_local(self) -> bool:
        """Whether it is a folder of the user's own."""
        return self.model.startswith("local/")


class EndpointSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """One model under one name: how many workers it may have, how each is sized."""

    name: Name
    model: Annotated[str, msgspec.Meta(pattern=MODEL_PATTERN)]
    """`local/NAME`, a folder under the models folder, or a hub repository `ORG/NAME`."""
    revision: Annotated[str, msgspec.Meta(pattern=r"^[\w][\w./-]{0,127}\Z")] | None = None
    engine: Literal["vllm"] = "vllm"
    gpus: Annotated[int, msgspec.Meta(ge=0, le=64)] | None = None
    """GPUs of one worker; None: as few as hold the model where the machine has any, else none (the CPUs serve)."""
    gpu_memory_gib: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """GiB on each GPU for one worker; None: what its model needs (gateway/memory/plan.py)."""
    max_model_len: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Tokens of context; None: the model's own, or as many as fit."""
    engine_args: dict[str, FlagValue] = {}
    min_workers: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    max_workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    per_worker: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32
    """Requests in flight that one worker gets; more wait in the gateway or, up to max_workers, start another."""
    idle_seconds: Annotated[float, msgspec.Meta(ge=1)] = 900
    sleep: Literal["auto", "level2", "off"] = "auto"
    """auto: idle workers sleep with their weights in the machine's memory; level2: where that is full, without them."""
    sleep_after_seconds: Annotated[float, msgspec.Meta(ge=1)] = 60
    """Idle for so long, a worker sleeps where not all endpoints fit on the GPUs at once."""
    priority: Annotated[int, msgspec.Meta(ge=-100, le=100)] = 0
    limits: Limits | None = None
    """What all keys together may take of it."""
    price: Price | None = None
    """What requests for it cost, and its workers' time on GPUs; None: nothing."""
    aliases: tuple[Name, ...] = ()
    allow: tuple[Allowable, ...] = ()
    """What requests may ask of its engines although it endangers them."""
    adapters: dict[Name, AdapterSource] = {}
    """LoRA adapters of the model, each a model of its own to those who ask."""
    lora: LoraRoom | None = None
    """Room for adapters that each worker is started with; None: none, or as much as `adapters` need."""
    labels: dict[str, str] = {}

    def is_local(self) -> bool:
        """Whether the model is a folder of the user's own."""
        return self.model.startswith("local/")

    def names(self) -> tuple[str, ...]:
        """Every name a request may call this endpoint by, its own first; without its adapters."""
        return (self.name, *self.aliases)


class Meant(NamedTuple):
    """What a request means by the model it names."""

    name: str
    """The endpoint's own name."""
    adapter: str = ""
    """The LoRA adapter of it, if it is one."""
    allow: tuple[Allowable, ...] = ()
    """What it may ask of an engine although it endangers one."""
    price: Price | None = None
    """What it costs by."""


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway knows of a model's files."""

    path: str
    """The folder relative to the models folder, as the manager wants it."""
    weights: Weights
    shape: ModelShape | None = None
    """None where config.json does not tell what memory depends on."""
    revision: str = ""
    """Another one whenever the files are others: the commit, or a digest of names, sizes and times."""

    @property
    def weights_mib(self) -> int:
        """MiB of the weights, loaded on one GPU or the CPUs."""
        return -(-self.weights.total // 2**20)


class AdapterFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway knows of an adapter's files."""

    path: str
    """The folder relative to the models folder."""
    revision: str
    """Another one whenever the files are others."""
    rank: int
    """The highest of any of its modules."""
    size_bytes: int
    """Of its tensors as they lie in the file."""
    unsupported: str = ""
    """What of it vLLM does not load."""
    hidden_size: int | None = None
    """Of the model it was made for; None: not told."""
    layers: int = 0
    """The model must have so many at least."""
    base_model: str = ""
    """What it says it was made for."""


class RolledBack(msgspec.Struct, frozen=True, kw_only=True):
    """A change that was taken back."""

    changed: dict[str, Any]
    """`{field: {"from", "to"}}`"""
    failure: Failure
    """Of the worker that was to serve as the change wanted."""
    at: float
    """Unix time, seconds."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A registered endpoint; times are Unix seconds."""

    spec: EndpointSpec
    created_at: float
    updated_at: float
    changed_at: float = 0.0
    """When it was last asked to be served in another way, or again in a way that had failed."""
    good: EndpointSpec | None = None
    """The last spec of which a worker has served, its revision a commit; None: none has yet."""
    rolled_back: RolledBack | None = None
    """Why `good` is served and not `spec`; None: nothing failed, `spec` is what should be served."""
