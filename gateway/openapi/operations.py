"""Every operation but inference: what Litestar routes. Pure."""

from gateway.access.routes import Rotation
from gateway.access.types import KeySpec
from gateway.audit.routes import Page
from gateway.capture.routes import CapturePage
from gateway.database.backup import Backup
from gateway.endpoints.routes import NewAdapter
from gateway.endpoints.status import EndpointView, ModelView
from gateway.endpoints.types import EndpointSpec
from gateway.events import Kind
from gateway.openapi.operation import EVENTS, JSON, TEXT, Operation, Parameter, Partial, text, thing, whole
from gateway.openapi.views import KeyView, ModelList, PlanReport, ReadyReport, WorkerReport
from gateway.types import Scope
from gateway.usage.request_routes import RequestsPage
from gateway.usage.types import By, UsageReport
from worker_manager.contract import Download, DownloadSpec, HostFacts

NAMED = "/api/endpoints/{name}"
LARGEST_NUMBER = 10**18 - 1

HEALTH = (
    Operation("GET", "/livez", "The process answers", None, answer=thing(status=text())),
    Operation("GET", "/healthz", "The same as /livez", None, answer=thing(status=text())),
    Operation("GET", "/healthcheck", "The same as /livez", None, answer=thing(status=text())),
    Operation("GET", "/readyz", "Whether inference can go on", None, answer=ReadyReport, refuses=(503,)),
    Operation("GET", "/metrics", "Prometheus's text format", Scope.METRICS, media=(TEXT,)),
    Operation("GET", "/openapi.json", "This document", None, answer={"type": "object"}),
)

ENDPOINTS = (
    Operation("GET", "/api/endpoints", "Every endpoint with its status", Scope.ENDPOINTS, answer=list[EndpointView]),
    Operation(
        "POST",
        "/api/endpoints",
        "Register an endpoint",
        Scope.ENDPOINTS,
        status=201,
        answer=EndpointView,
        body=EndpointSpec,
        refuses=(409,),
    ),
    Operation("GET", NAMED, "One endpoint with its status", Scope.ENDPOINTS, answer=EndpointView),
    Operation(
        "PATCH",
        NAMED,
        "Change some fields",
        Scope.ENDPOINTS,
        answer=EndpointView,
        body=Partial(EndpointSpec, "EndpointChange"),
        refuses=(409,),
    ),
    Operation("DELETE", NAMED, "Forget an endpoint; its workers finish what they serve", Scope.ENDPOINTS, status=204),
    Operation(
        "POST",
        f"{NAMED}/start",
        "Bring one worker up without a request",
        Scope.ENDPOINTS,
        status=202,
        answer=EndpointView,
        route=NAMED,
    ),
    Operation(
        "POST",
        f"{NAMED}/stop",
        "Let its workers finish and go, until the next request",
        Scope.ENDPOINTS,
        status=202,
        answer=EndpointView,
        route=NAMED,
    ),
    Operation(
        "POST",
        f"{NAMED}/adapters",
        "Add a LoRA adapter, or put another in its place",
        Scope.ENDPOINTS,
        status=202,
        answer=EndpointView,
        body=NewAdapter,
        refuses=(409,),
        route=NAMED,
    ),
    Operation(
        "DELETE", f"{NAMED}/adapters/{{adapter}}", "Take a LoRA adapter away", Scope.ENDPOINTS, status=204, route=NAMED
    ),
    Operation("GET", "/v1/models", "What this key may use", Scope.INFERENCE, answer=ModelList),
    Operation("GET", "/v1/models/{model}", "One model", Scope.INFERENCE, answer=ModelView),
)

KEYS = (
    Operation("GET", "/api/keys", "Every key but the one of the environment", Scope.ADMIN, answer=list[KeyView]),
    Operation(
        "POST", "/api/keys", "Make a key; the answer alone shows it", Scope.ADMIN, 201, answer=KeyView, body=KeySpec
    ),
    Operation("GET", "/api/keys/{key_id}", "One key", Scope.ADMIN, answer=KeyView),
    Operation(
        "PATCH",
        "/api/keys/{key_id}",
        "Change some fields",
        Scope.ADMIN,
        answer=KeyView,
        body=Partial(KeySpec, "KeyChange"),
    ),
    Operation("DELETE", "/api/keys/{key_id}", "Revoke a key", Scope.ADMIN, status=204),
    Operation(
        "POST",
        "/api/keys/{key_id}/rotate",
        "Give a key a new secret; the answer alone shows it",
        Scope.ADMIN,
        status=201,
        answer=KeyView,
        body=Rotation,
        body_required=False,
    ),
    Operation("DELETE", "/api/keys/{key_id}/spent", "Let a key's budget begin anew", Scope.ADMIN, answer=KeyView),
)

MACHINE = (
    Operation("GET", "/api/host", "GPUs, memory, disk, engine images", Scope.ADMIN, answer=HostFacts),
    Operation("GET", "/api/workers", "Every worker the manager sees", Scope.ADMIN, answer=list[WorkerReport]),
    Operation(
        "GET",
        "/api/workers/{worker_id}/logs",
        "The last lines a worker printed",
        Scope.ADMIN,
        media=(TEXT,),
        parameters=(Parameter("lines", {"type": "integer"}, "How many: 200, at most 2,000"),),
    ),
    Operation("GET", "/api/plan", "The planner, run dry on this instant", Scope.ADMIN, answer=PlanReport),
    Operation(
        "GET",
        "/api/plan/log",
        "What the planner was told and decided lately, a JSON line a plan",
        Scope.ADMIN,
        media=("application/jsonl",),
    ),
    Operation(
        "GET",
        "/api/events",
        "What happens, as server-sent events",
        Scope.ENDPOINTS,
        media=(EVENTS,),
        parameters=(
            Parameter("kind", text(), f"Some of {', '.join(Kind)}, with commas between"),
            Parameter("endpoint", text(), "Of this endpoint alone"),
            Parameter("after", text(), "Behind the event of this id"),
            Parameter("last-event-id", text(), "The same", "header"),
        ),
    ),
    Operation(
        "POST",
        "/api/downloads",
        "Start a download, or find the one that runs",
        Scope.ADMIN,
        status=202,
        answer=Download,
        body=DownloadSpec,
        refuses=(409,),
    ),
    Operation("GET", "/api/downloads", "Every download", Scope.ADMIN, answer=list[Download]),
    Operation(
        "DELETE",
        "/api/downloads/{download_id}",
        "Cancel a download; what was fetched stays",
        Scope.ADMIN,
        answer=Download,
        refuses=(409,),
    ),
    Operation("POST", "/api/backup", "Make a backup", Scope.ADMIN, status=201, answer=Backup, refuses=(409,)),
)

FORMAT = text(enum=("json", "csv", ""))
TIMES = (
    Parameter("from", text(), "A day or a time, UTC"),
    Parameter("to", text(), "A day or a time, UTC"),
)

RECORDS = (
    Operation(
        "GET",
        "/api/usage",
        "Sums of all requests that have ended",
        Scope.ADMIN,
        answer=UsageReport,
        media=(JSON, "text/csv"),
        parameters=(
            Parameter("by", text(enum=(*By, "")), "What is summed up; empty: key"),
            Parameter("key", text(), "Of this key"),
            Parameter("endpoint", text(), "Of this endpoint"),
            *TIMES,
            Parameter("format", FORMAT, "How it is told; empty: as `Accept` asks"),
        ),
    ),
    Operation(
        "GET",
        "/api/usage/requests",
        "The record of each request, the newest first",
        Scope.ADMIN,
        answer=RequestsPage,
        media=(JSON, "text/csv"),
        parameters=(
            Parameter("key", text(), "Of this key"),
            Parameter("endpoint", text(), "Of this endpoint"),
            *TIMES,
            Parameter("limit", whole(1, LARGEST_NUMBER), "How many: 100, at most 1,000"),
            Parameter("before", text(), "What `next` said of the page before"),
            Parameter("format", FORMAT, "How it is told; empty: as `Accept` asks"),
        ),
    ),
    Operation(
        "GET",
        "/api/audit",
        "Every change, the newest first",
        Scope.ADMIN,
        answer=Page,
        parameters=(
            Parameter("limit", whole(1, LARGEST_NUMBER), "How many: 100, at most 1,000"),
            Parameter("before", whole(1, LARGEST_NUMBER), "Older than this one"),
            *(Parameter(name, text(), f"Of this {name}") for name in ("who", "action", "target", "request_id")),
            *TIMES,
        ),
    ),
    Operation(
        "GET",
        "/api/captures",
        "What keys sent and got, where that was turned on",
        Scope.ADMIN,
        answer=CapturePage,
        parameters=(
            Parameter("key", text(), "Of this key"),
            Parameter("before", whole(1, LARGEST_NUMBER), "Older than this one"),
            Parameter("limit", whole(1, LARGEST_NUMBER), "How many: 20, at most 200"),
        ),
    ),
    Operation("PUT", "/api/captures/{key_id}", "Capture what a key sends and gets", Scope.ADMIN, status=204),
    Operation(
        "DELETE",
        "/api/captures/{key_id}",
        "Capture no more of a key, and delete what was",
        Scope.ADMIN,
        answer=thing(deleted=whole(0)),
    ),
)

ROUTED = (*HEALTH, *ENDPOINTS, *KEYS, *MACHINE, *RECORDS)
"""All that Litestar answers."""
