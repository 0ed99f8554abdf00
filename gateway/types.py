"""Structs that several rooms of the gateway share."""

from enum import IntEnum, StrEnum
from typing import Annotated, NamedTuple

import msgspec

from gateway.prices import Price

PERSON = "person:"
"""How the id of somebody begins who has signed in with a token; no key's does."""


class Scope(StrEnum):
    """What a key may be used for."""

    INFERENCE = "inference"
    ENDPOINTS = "endpoints"
    ADMIN = "admin"
    METRICS = "metrics"


class Allowable(StrEnum):
    """What requests may not ask of an engine unless it is allowed (`proxy/hygiene.py` says why)."""

    CHAT_TEMPLATE = "chat_template"
    CHAT_TEMPLATE_KWARGS = "chat_template_kwargs"
    EMBEDS = "embeds"
    GRAMMAR = "grammar"
    LOGITS_PROCESSORS = "logits_processors"
    LORA_PATH = "lora_path"
    MEDIA_URLS = "media_urls"
    MM_PROCESSOR_KWARGS = "mm_processor_kwargs"
    PROMPT_LOGPROBS = "prompt_logprobs"
    TRANSFER_PARAMS = "transfer_params"
    VLLM_XARGS = "vllm_xargs"


class Priority(IntEnum):
    """How long a request may be kept behind others: the lower number goes first."""

    INTERACTIVE = 0
    """Somebody waits for the answer; what every request is that says nothing."""
    BATCH = 1
    """Nobody does: it takes what interactive requests leave."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key or an endpoint may take; None: as much as it likes."""

    requests_per_minute: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] | None = None
    tokens_per_minute: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] | None = None
    """Prompt and answer together, cached ones included."""
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    """Requests under way at once, those that wait for a worker included."""


class Period(StrEnum):
    """How long a budget lasts; days and months are UTC's."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key may spend: tokens, or what its requests cost, or no more than either."""

    tokens: Annotated[int, msgspec.Meta(ge=1, le=2**53)] | None = None
    cost: Annotated[float, msgspec.Meta(gt=0, le=1_000_000_000)] | None = None
    """In units, by the prices of the endpoints; requests for those without a price cost nothing."""
    period: Period = Period.MONTH

    def __post_init__(self) -> None:
        """Raise ValueError for a budget that bounds nothing."""
        if self.tokens is None and self.cost is None:
            raise ValueError("A budget takes tokens, cost or both")


class Estimate(msgspec.Struct, frozen=True, gc=False):
    """What a request may take, in tokens."""

    least: int
    """Its prompt, and the output that it asks for."""
    likely: int
    """The same, with the usual output where it does not say how much it asks for."""
    prompt: int = 0
    """How much of both is the prompt."""
    price: Price | None = None
    """What it will cost by; None: nothing."""
    most: int = 0
    """What it hardly takes more than: its prompt may have more tokens, its answer may be long where it says no most."""


class Wish(msgspec.Struct, frozen=True):
    """What a request wants of the worker it gets."""

    prefix: bytes = b""
    """The first bytes of what makes the prompt: best a worker that has read them before."""
    priority: Priority = Priority.INTERACTIVE
    adapter: str = ""
    """The LoRA adapter that must be loaded there."""


class Principal(msgspec.Struct, frozen=True):
    """Who is asking: a key that was verified."""

    key_id: str
    name: str
    scopes: frozenset[Scope]
    endpoints: frozenset[str]
    """Names of the endpoints it may use; `*` stands for all."""
    expires_at: float | None = None
    """Unix time, seconds."""
    priority: Priority = Priority.INTERACTIVE
    """The best its requests can have."""

    def may(self, scope: Scope) -> bool:
        """Whether the key has this scope; admin includes every other."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def may_use(self, endpoint: str) -> bool:
        """Whether the key may send requests to this endpoint."""
        return "*" in self.endpoints or endpoint in self.endpoints


class Sent(NamedTuple):
    """What a key sent and got, as it was: of a key whose requests are captured."""

    at: float
    """When it ended; Unix seconds."""
    key_id: str
    request_id: str
    endpoint: str
    path: str
    status: int
    streamed: bool
    prompt: bytes
    """The body, maybe cut; like the answer not redacted yet."""
    answer: bytes


class Used(NamedTuple):
    """What one inference request took, for the record: a row of the table `usage_requests`, in its order.

    Flags are 0 or 1: SQLite's binding of a bool costs ten times that of a number.
    """

    at: float
    """When it ended; Unix seconds."""
    request_id: str
    key_id: str
    endpoint: str
    worker: str
    """The last one that had it; empty where none did."""
    status: int
    """499 where the client left."""
    stream: int
    client_gone: int
    priority: int
    tokens_in: int
    """Of the prompt, cached ones included."""
    tokens_out: int
    tokens_cached: int
    estimated: int
    """Whether the engine did not come to tell the tokens."""
    queue_ms: int
    first_byte_ms: int | None
    """From the request's first byte to the first of the engine's answer; None where it gave none."""
    total_ms: int
    cost: int = 0
    """Billionths of a unit, by the price that the endpoint had as the request came; 0 where it had none."""
