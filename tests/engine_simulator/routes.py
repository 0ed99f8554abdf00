"""Which route is answered by what."""

import traceback
from collections.abc import Callable

from tests.engine_simulator import adapters
from tests.engine_simulator import generating_routes as generating
from tests.engine_simulator import pooling_routes as pooling
from tests.engine_simulator import service_routes as service
from tests.engine_simulator.engine import Engine
from tests.engine_simulator.http import Connection, Request
from tests.engine_simulator.requests import RequestError

Handler = Callable[[Engine, Connection, Request], None]

ROUTES: dict[str, dict[str, Handler]] = {
    "/health": {"GET": service.health},
    "/ping": {"GET": service.health, "POST": service.health},
    "/version": {"GET": service.version},
    "/load": {"GET": service.load},
    "/metrics": {"GET": service.metrics},
    "/v1/models": {"GET": service.models},
    "/simulator/stats": {"GET": service.stats},
    "/v1/chat/completions": {"POST": generating.chat},
    "/v1/completions": {"POST": generating.completions},
    "/v1/responses": {"POST": generating.responses},
    "/v1/responses/{id}": {"GET": generating.get_response},
    "/v1/responses/{id}/cancel": {"POST": generating.cancel_response},
    "/v1/messages": {"POST": generating.messages},
    "/v1/messages/count_tokens": {"POST": generating.count_tokens},
    "/v1/audio/transcriptions": {"POST": generating.speech},
    "/v1/audio/translations": {"POST": generating.speech},
    "/tokenize": {"POST": pooling.tokenize},
    "/detokenize": {"POST": pooling.detokenize},
    "/v1/embeddings": {"POST": pooling.embeddings},
    "/score": {"POST": pooling.score},
    "/v1/score": {"POST": pooling.score},
    "/rerank": {"POST": pooling.rerank},
    "/v1/rerank": {"POST": pooling.rerank},
    "/v2/rerank": {"POST": pooling.rerank},
    "/pooling": {"POST": pooling.pooling},
    "/v1/pooling": {"POST": pooling.pooling},
    "/classify": {"POST": pooling.classify},
    "/v1/classify": {"POST": pooling.classify},
}

DEVELOPMENT_ROUTES: dict[str, dict[str, Handler]] = {
    "/sleep": {"POST": service.sleep},
    "/wake_up": {"POST": service.wake_up},
    "/is_sleeping": {"GET": service.is_sleeping},
    "/collective_rpc": {"POST": service.collective_rpc},
    "/reset_prefix_cache": {"POST": service.reset_prefix_cache},
}
"""Only with VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode."""

ADAPTER_ROUTES: dict[str, dict[str, Handler]] = {
    "/v1/load_lora_adapter": {"POST": adapters.load},
    "/v1/unload_lora_adapter": {"POST": adapters.unload},
}
"""Only with VLLM_ALLOW_RUNTIME_LORA_UPDATING."""


class Router:
    """Finds the handler, and turns a `RequestError` into its answer."""

    def __init__(self, engine: Engine, *, development: bool, updates_adapters: bool) -> None:
        self._engine = engine
        self._routes = ROUTES | (DEVELOPMENT_ROUTES if development else {})
        self._routes |= ADAPTER_ROUTES if updates_adapters else {}

    def handle(self, connection: Connection, request: Request) -> None:
        """Answer one request, now or later."""
        paths = self._engine.paths
        paths[request.path] = paths.get(request.path, 0) + 1
        try:
            self._handler(request)(self._engine, connection, request)
        except RequestError as error:
            connection.answer_json(error.body(request.path), error.status)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as misfit:
            # a body of another shape than the route's, which vLLM's models of bodies refuse before its code sees it
            refusal = RequestError(400, f"1 validation error:\n  {misfit}", "Bad Request", "body")
            connection.answer_json(refusal.body(request.path), refusal.status)
        except Exception:  # noqa: BLE001 - the root of a request, logged
            # vLLM answers 500 to whatever it did not foresee, and goes on
            traceback.print_exc()
            failure = RequestError(500, "Internal Server Error", "InternalServerError")
            connection.answer_json(failure.body(request.path), failure.status)

    def _handler(self, request: Request) -> Handler:
        route = self._routes.get(request.path)
        if route is None and request.path.startswith("/v1/responses/"):
            ending = "/cancel" if request.path.endswith("/cancel") else ""
            route = self._routes["/v1/responses/{id}" + ending]
        if route is None:
            raise RequestError(404, "Not Found", "Not Found")
        handler = route.get(request.method)
        if handler is None:
            raise RequestError(405, "Method Not Allowed", "Method Not Allowed")
        return handler
