"""Liveness, readiness, metrics."""

from collections.abc import Callable
from typing import NamedTuple

from litestar import Controller, Response, get

from gateway.errors import GatewayError
from gateway.http import answer, needs
from gateway.metrics import CONTENT_TYPE
from gateway.types import Scope


class NotReady(GatewayError):
    """Inference can't go on."""

    status = 503
    type = "service_unavailable_error"
    code = "not_ready"


class Readiness(NamedTuple):
    """What `GET /readyz` tells."""

    parts: dict[str, str]
    """The state of each part: `ok`, or what is wrong."""
    inference: bool
    """Whether inference can go on all the same."""


class HealthRoutes(Controller):
    """Open to everybody, but for the metrics."""

    @get(["/livez", "/healthz", "/healthcheck"], sync_to_thread=False)
    def livez(self) -> Response[dict[str, str]]:
        """The process answers."""
        return Response({"status": "ok"})

    @get("/readyz", sync_to_thread=False)
    def readyz(self, readiness: Callable[[], Readiness]) -> Response[dict[str, object]] | Response[bytes]:
        """200 while inference can go on, `degraded` where something else can't; 503 where nothing can."""
        parts, inference = readiness()
        bad = [f"{part}: {state}" for part, state in parts.items() if state != "ok"]
        if not inference:
            return answer(NotReady(f"Not ready. {'; '.join(bad)}", retry_after=2))
        body: dict[str, object] = {"status": "degraded" if bad else "ok", "parts": parts}
        return Response(body)

    @get("/metrics", guards=[needs(Scope.METRICS)], sync_to_thread=False)
    def metrics(self, render: Callable[[], bytes]) -> Response[bytes]:
        """Prometheus's text format."""
        return Response(render(), headers={"content-type": CONTENT_TYPE})
