"""`/api/endpoints` and `/v1/models`: HTTP to calls and back, nothing else."""

from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Controller, Request, delete, get, patch, post

from gateway.access.keyring import Keyring
from gateway.endpoints.changes import SERVING_FIELDS
from gateway.endpoints.registry import Registry, near_names
from gateway.endpoints.status import EndpointView, ModelView, Statuses
from gateway.endpoints.types import EndpointSpec
from gateway.errors import NotFound, UnknownModel
from gateway.http import needs, read
from gateway.types import Principal, Scope
from worker_manager.contract import HostFacts

Host = Callable[[], HostFacts]
Prepare = Callable[[EndpointSpec], Awaitable[None]]
"""Starts the download of an endpoint's model where it has to be downloaded; raises if that is refused."""
Touch = Callable[[EndpointSpec, str], Awaitable[None]]
"""Asks for a start or a stop of an endpoint's workers."""
Changed = Callable[[], None]
Renew = Callable[[EndpointSpec], None]
"""An endpoint is to be served in another way: one that is awake is to be so afterwards."""


class EndpointRoutes(Controller):
    """What users register."""

    path = "/api/endpoints"
    guards = [needs(Scope.ENDPOINTS)]

    @post()
    async def create(
        self,
        request: Request[Any, Any, Any],
        registry: Registry,
        statuses: Statuses,
        host: Host,
        prepare: Prepare,
        changed: Changed,
    ) -> EndpointView:
        """Register an endpoint; its model is downloaded now where it must be, its workers start on demand."""
        spec = await read(request, EndpointSpec)
        await registry.look(spec)
        checked = registry.checked(spec, host())
        await prepare(checked)
        endpoint = await registry.add(checked)
        changed()
        return statuses.view(endpoint)

    @get()
    async def all(self, registry: Registry, statuses: Statuses) -> list[EndpointView]:
        """Every endpoint with its status."""
        return [statuses.view(endpoint) for endpoint in registry.all()]

    @get("/{name:path}")
    async def one(self, name: str, registry: Registry, statuses: Statuses) -> EndpointView:
        """One endpoint with its status."""
        return statuses.view(registry.get(name.lstrip("/")))

    @patch("/{name:path}")
    async def change(
        self,
        name: str,
        request: Request[Any, Any, Any],
        registry: Registry,
        statuses: Statuses,
        host: Host,
        prepare: Prepare,
        renew: Renew,
        changed: Changed,
    ) -> EndpointView:
        """Change some fields; workers that no longer fit serve until their successors do."""
        fields = await read(request, dict[str, Any])
        await registry.look(registry.get(name.lstrip("/")).spec, fields)
        checked = registry.merged(name.lstrip("/"), fields, host())
        await prepare(checked)
        is_served_anew = not fields.keys().isdisjoint(SERVING_FIELDS)
        endpoint = await registry.replace(checked, again=is_served_anew)
        if is_served_anew:
            renew(checked)
        changed()
        return statuses.view(endpoint)

    @delete("/{name:path}")
    async def remove(self, name: str, registry: Registry, changed: Changed) -> None:
        """Forget an endpoint; its workers finish what they serve and go. One that can't be read goes as well."""
        if not await registry.discard(name.lstrip("/")):
            await registry.remove(name.lstrip("/"))
        changed()

    @post("/{name:path}", status_code=202)
    async def order(self, name: str, registry: Registry, statuses: Statuses, touch: Touch) -> EndpointView:
        """`…/start` brings one worker up without a request; `…/stop` lets its workers finish and go.

        One route for both, because a name may hold slashes.
        """
        name, _, verb = name.lstrip("/").rpartition("/")
        if verb not in ("start", "stop"):
            raise NotFound(f"An endpoint takes the orders start and stop, not '{verb}'")
        endpoint = registry.get(name)
        await touch(endpoint.spec, verb)
        return statuses.view(endpoint)


class ModelRoutes(Controller):
    """OpenAI's list of models: the endpoints this key may use."""

    path = "/v1/models"
    guards = [needs(Scope.INFERENCE)]

    @get()
    async def all(
        self, request: Request[Any, Any, Any], keyring: Keyring, registry: Registry, statuses: Statuses
    ) -> dict[str, Any]:
        """Every model, aliases as models of their own."""
        who = keyring.authorize(dict(request.scope["headers"]), Scope.INFERENCE)
        return {"object": "list", "data": _visible(who, registry, statuses)}

    @get("/{name:path}")
    async def one(
        self, name: str, request: Request[Any, Any, Any], keyring: Keyring, registry: Registry, statuses: Statuses
    ) -> ModelView:
        """One model."""
        who = keyring.authorize(dict(request.scope["headers"]), Scope.INFERENCE)
        wanted = name.lstrip("/")
        visible = _visible(who, registry, statuses)
        for model in visible:
            if model.id == wanted:
                return model
        raise UnknownModel(f"There is no model '{wanted}'{near_names(wanted, [model.id for model in visible])}")


def _visible(who: Principal, registry: Registry, statuses: Statuses) -> list[ModelView]:
    return [
        statuses.model(endpoint, name)
        for endpoint in registry.all()
        if who.may_use(endpoint.spec.name)
        for name in endpoint.spec.names()
    ]
