"""Answers that handlers put together of several structs, as structs of their own: for the document alone."""

import msgspec

from gateway.access.routes import SpentView
from gateway.access.types import KeySpec
from gateway.endpoints.status import ModelView
from gateway.scheduling.reasons import Reason
from gateway.scheduling.types import Plan, Situation
from gateway.types import Scope
from worker_manager.contract import ObservedWorker


class KeyView(KeySpec, frozen=True, kw_only=True):
    """A key as it is shown."""

    id: str
    scopes: tuple[Scope, ...]  # type: ignore[assignment]  # sorted, since an answer has an order
    endpoints: tuple[str, ...]  # type: ignore[assignment]
    created_at: float
    last_used_at: float | None
    previous_until: float | None
    spent: SpentView | None
    key: str | None
    """The key itself, in the answer that made it; else null."""


class WorkerReport(ObservedWorker, frozen=True, kw_only=True):
    """A worker as the manager sees it, and what the gateway has to do with it."""

    in_flight: int
    draining: bool
    on_trial: bool
    why: Reason | None
    """The last decision about it."""


class PlanReport(msgspec.Struct, frozen=True, kw_only=True):
    """The planner, run dry."""

    plan: Plan
    situation: Situation
    last: Plan | None
    workers: dict[str, Reason]


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's list of models."""

    object: str
    data: list[ModelView]


class ReadyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is there, and what is not."""

    status: str
    """ok or degraded."""
    parts: dict[str, str]
