"""`/api/endpoints` and `/v1/models`: HTTP to calls and back, nothing else."""

from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Controller, Request, delete, get, patch, post

from gateway.access.keyring import Keyring
from gateway.endpoints.changes import SERVING_FIELDS, is_served_alike
from gateway.endpoints.registry import Registry, near_names, shown_name
from gateway.endpoints.status import EndpointView, ModelView, Statuses
from gateway.endpoints.types import AdapterSource, Endpoint, EndpointSpec, Name
from gateway.errors import NotFound, UnknownModel
from gateway.http import needs, read
from gateway.types import Principal, Scope
from worker_manager.contract import HostFacts

Host = Callable[[], HostFacts]
Prepare = Callable[[EndpointSpec], Awaitable[None]]
"""Starts the download of an endpoint's model where it has to be downloaded; raises if that is refused."""
Touch = Callable[[EndpointSpec, str], Awaitable[None]]
"""Asks for a start or a stop of an endpoint's workers."""
Changed = Callable[[], Awaitable[None]]
"""Lets everybody know of a change; what is shown afterwards is what it made."""
Renew = Callable[[EndpointSpec], None]
"""An endpoint is to be served in another way: one that is awake is to be so afterwards."""


class NewAdapter(AdapterSource, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA adapter to be added."""

    name: Name


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
        checked = await registry.checked(spec, host())
        await prepare(checked)
        endpoint = await registry.add(checked)
        await changed()
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
        async with registry.adapting:
            checked = await registry.merged(name.lstrip("/"), fields, host())
            await prepare(checked)
            again = not fields.keys().isdisjoint(SERVING_FIELDS)
            endpoint = await _replaced(registry, checked, renew, changed, again=again)
        return statuses.view(endpoint)

    @delete("/{name:path}", status_code=204)
    async def remove(self, name: str, registry: Registry, host: Host, renew: Renew, changed: Changed) -> None:
        """Forget an endpoint; its workers finish what they serve and go. One that can't be read goes as well.

        `…/adapters/NAME`: only that adapter. One route for both, because a name may hold slashes.
        """
        name = name.lstrip("/")
        owner, _, adapter = name.partition("/adapters/")
        if adapter and registry.find(name) is None and registry.find(owner) is not None:
            async with registry.adapting:
                await _replaced(registry, await registry.adapted(owner, adapter, None, host()), renew, changed)
            return
        if not await registry.discard(name):
            await registry.remove(name)
        await changed()

    @post("/{name:path}", status_code=202)
    async def order(
        self,
        name: str,
        request: Request[Any, Any, Any],
        registry: Registry,
        statuses: Statuses,
        host: Host,
        prepare: Prepare,
        renew: Renew,
        touch: Touch,
        changed: Changed,
    ) -> EndpointView:
        """`…/start` brings one worker up without a request; `…/stop` lets its workers finish and go.

        `…/adapters` adds a LoRA adapter, or puts another in its place; workers load it while they run. One route for
        all, because a name may hold slashes.
        """
        name, _, verb = name.lstrip("/").rpartition("/")
        if verb == "adapters":
            asked = await read(request, NewAdapter)
            async with registry.adapting:
                source = AdapterSource(model=asked.model, revision=asked.revision)
                checked = await registry.adapted(name, asked.name, source, host())
                await prepare(checked)
                return statuses.view(await _replaced(registry, checked, renew, changed))
        if verb not in ("start", "stop"):
            raise NotFound(f"An endpoint takes the orders start, stop and adapters, not '{verb}'")
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
        who = await keyring.admit(dict(request.scope["headers"]), Scope.INFERENCE)
        return {"object": "list", "data": _visible(who, registry, statuses)}

    @get("/{name:path}")
    async def one(
        self, name: str, request: Request[Any, Any, Any], keyring: Keyring, registry: Registry, statuses: Statuses
    ) -> ModelView:
        """One model."""
        who = await keyring.admit(dict(request.scope["headers"]), Scope.INFERENCE)
        wanted = name.lstrip("/")
        visible = _visible(who, registry, statuses)
        for model in visible:
            if model.id == wanted:
                return model
        raise UnknownModel(
            f"There is no model '{shown_name(wanted)}'{near_names(wanted, [model.id for model in visible])}"
        )


async def _replaced(
    registry: Registry, checked: EndpointSpec, renew: Renew, changed: Changed, *, again: bool = False
) -> Endpoint:
    """Store a changed endpoint and let everybody know. `again`: as a change of how it is served, even if it is none."""
    is_served_anew = again or not is_served_alike(registry.get(checked.name).spec, checked)
    endpoint = await registry.replace(checked, again=again)
    if is_served_anew:
        renew(checked)
    await changed()
    return endpoint


def _visible(who: Principal, registry: Registry, statuses: Statuses) -> list[ModelView]:
    return [
        model for endpoint in registry.all() if who.may_use(endpoint.spec.name) for model in statuses.models(endpoint)
    ]
