"""Liveness, readiness, metrics."""

from collections.abc import Awaitable, Callable

from litestar import Controller, Response, get

from gateway.errors import GatewayError
from gateway.http import answer, needs
from gateway.metrics import CONTENT_TYPE
from gateway.types import Scope


class NotReady(GatewayError):
    """Inference can't go on, or only in part."""

    status = 503
    type = "service_unavailable_error"
    code = "not_ready"


Readiness = Callable[[], Awaitable[dict[str, str]]]
"""The state of each part, `ok` or a sentence."""


class HealthRoutes(Controller):
    """Open to everybody, but for the metrics."""

    @get(["/livez", "/healthz", "/healthcheck"], sync_to_thread=False)
    def livez(self) -> Response[dict[str, str]]:
        """The process answers."""
        return Response({"status": "ok"})

    @get("/readyz")
    async def readyz(self, readiness: Readiness) -> Response[dict[str, object]] | Response[bytes]:
        """200 while inference can go on: the database is readable and the manager has been seen."""
        parts = await readiness()
        bad = [f"{part}: {state}" for part, state in parts.items() if state != "ok"]
        if bad:
            return answer(NotReady(f"Not ready. {'; '.join(bad)}", retry_after=2))
        body: dict[str, object] = {"status": "ok", "parts": parts}
        return Response(body)

    @get("/metrics", guards=[needs(Scope.METRICS)], sync_to_thread=False)
    def metrics(self, render: Callable[[], bytes]) -> Response[bytes]:
        """Prometheus's text format."""
        return Response(render(), headers={"content-type": CONTENT_TYPE})
