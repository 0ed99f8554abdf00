"""All endpoints in memory, by every name they answer to; the only writer of the endpoint store."""

import asyncio
import time
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

import msgspec
import structlog

from gateway.database.chain import Change
from gateway.endpoints import readers
from gateway.endpoints.adapter_rules import check_adapters, settle_room
from gateway.endpoints.changes import changed_fields, is_served_alike, pinned
from gateway.endpoints.models import Files, ModelsFolder
from gateway.endpoints.rules import check, settle
from gateway.endpoints.store import EndpointStore, shown
from gateway.endpoints.types import (
    NAME_MAX,
    AdapterFacts,
    AdapterSource,
    Endpoint,
    EndpointSpec,
    Meant,
    ModelFacts,
    RolledBack,
)
from gateway.errors import BadRequest, Conflict, DiskUnavailable, NotFound, UnknownModel
from gateway.memory.estimate import Measured
from gateway.prices import Price
from worker_manager.contract import Failure, HostFacts

log = structlog.get_logger(__name__)

NAMED_CHARACTERS = 2 * NAME_MAX
"""Of a name that there is not: what is compared with those there are, and told."""
FILES_SECONDS = 30.0
"""So long who registers or changes an endpoint waits for its files to be read: large models on slow disks take some."""

Measurement = Callable[[EndpointSpec, ModelFacts, HostFacts, int], Measured | None]
"""What was measured of a model with these flags on so many GPUs."""


def unmeasured(_spec: EndpointSpec, _model: ModelFacts, _host: HostFacts, _gpus: int) -> Measured | None:
    """Give no measurement."""
    return None


class Registry:
    """Creates, changes, finds and deletes endpoints. Every change is checked, then stored, then visible."""

    def __init__(
        self,
        store: EndpointStore,
        models: ModelsFolder,
        margin_mib: int,
        clock: Callable[[], float] = time.time,
        *,
        measured: Measurement = unmeasured,
    ) -> None:
        self._store = store
        self._measured = measured
        self._models = models
        self._margin_mib = margin_mib
        self._clock = clock
        self._endpoints: dict[str, Endpoint] = {}
        self._meant: dict[str, Meant] = {}
        self.noted: Callable[[str, Endpoint, tuple[str, ...]], None] = lambda _what, _endpoint, _fields: None
        """Hears what became of an endpoint (`created`, `changed`, `deleted`), and which fields were set anew."""
        self.adapting = asyncio.Lock()
        """Held by whoever makes a change out of what an endpoint is, until it is stored."""
        self._changing = asyncio.Lock()
        """Held while an endpoint that exists is changed: what a change is made from must be the last one."""

    async def load(self) -> None:
        """Read all endpoints from the store; one that can't be read is logged and left alone."""
        good, bad = await self._store.all()
        for name, problem in bad.items():
            log.error("endpoint unreadable", endpoint=name, problem=problem)
        self._endpoints = {endpoint.spec.name: endpoint for endpoint in good}
        self._index()

    def _index(self) -> None:
        specs = [endpoint.spec for endpoint in self._endpoints.values()]
        self._meant = {adapter: _meant(spec, adapter) for spec in specs for adapter in spec.adapters}
        self._meant |= {name: _meant(spec) for spec in specs for name in spec.aliases}
        self._meant |= {spec.name: _meant(spec) for spec in specs}

    def all(self) -> list[Endpoint]:
        """Every endpoint, by name."""
        return [self._endpoints[name] for name in sorted(self._endpoints)]

    def get(self, name: str) -> Endpoint:
        """The endpoint with exactly this name. Raises NotFound with near names."""
        found = self._endpoints.get(name)
        if found is None:
            raise NotFound(f"There is no endpoint '{shown_name(name)}'{near_names(name, self._endpoints)}")
        return found

    def find(self, name: str) -> Endpoint | None:
        """The endpoint with exactly this name."""
        return self._endpoints.get(name)

    def price(self, name: str) -> Price | None:
        """What the endpoint with exactly this name costs by; None also where there is none."""
        found = self._endpoints.get(name)
        return found.spec.price if found is not None else None

    def resolve(self, model: str, allowed: Callable[[str], bool]) -> Meant:
        """The endpoint that a request means by `model`. Raises UnknownModel with names near it that the key may see.

        An endpoint the key may not use is answered as one that does not exist: its name is nobody's business.
        """
        found = self._meant.get(model)
        if found is None or not allowed(found.name):
            visible = [known for known, meant in self._meant.items() if allowed(meant.name)]
            raise UnknownModel(f"There is no model '{shown_name(model)}'{near_names(model, visible)}", param="model")
        return found

    async def facts(self, spec: EndpointSpec) -> ModelFacts | None:
        """The model's files; None if it has to be downloaded first. Raises BadRequest for a broken folder.

        Takes as long as the disk does.
        """
        return await readers.read(lambda: self._models.find(spec))

    async def adapter_facts(self, source: AdapterSource) -> AdapterFacts | None:
        """The same of an adapter's files."""
        return await readers.read(lambda: self._models.find_adapter(source))

    async def files(self, spec: EndpointSpec) -> Files:
        """What the files of its model and adapters tell now. Raises DiskUnavailable."""
        try:
            async with asyncio.timeout(FILES_SECONDS):
                return await readers.read(lambda: Files(self._models, spec))
        except TimeoutError:
            raise DiskUnavailable(
                f"The models folder does not answer within {FILES_SECONDS:g} s, and nothing was changed: is its disk, "
                "or the network to it, gone?",
                retry_after=FILES_SECONDS,
            ) from None

    async def checked(self, spec: EndpointSpec, host: HostFacts) -> EndpointSpec:
        """A new endpoint's spec with what depends on the machine filled in.

        Raises BadRequest, Conflict, DiskUnavailable.
        """
        for name in (*spec.names(), *spec.adapters):
            self._require_free(name, owner=None)
        return self._settled(spec, None, await self.files(spec), host, has_room=spec.lora is not None)

    def _settled(
        self, spec: EndpointSpec, old: EndpointSpec | None, files: Files, host: HostFacts, *, has_room: bool
    ) -> EndpointSpec:
        """With what depends on machine and files filled in; `has_room`: room for adapters was asked for as it is.

        What is wrong with an adapter that was there before stands in the way of no other change.
        """
        kept = old.adapters if old is not None and (old.model, old.revision) == (spec.model, spec.revision) else {}
        fresh = {name: source for name, source in spec.adapters.items() if kept.get(name) != source}
        adapters = {name: files.adapter(source) for name, source in fresh.items()}
        readable = adapters | {name: _if_any(files, kept[name]) for name in spec.adapters if name not in fresh}
        spec = settle_room(settle(spec, host), readable, fixed=has_room)
        self._check(spec, files.model(), host)
        check_adapters(spec, adapters, files.model())
        return spec

    def _check(self, spec: EndpointSpec, model: ModelFacts | None, host: HostFacts) -> None:
        def learned(gpus: int) -> Measured | None:
            return self._measured(spec, model, host, gpus) if model is not None else None

        check(spec, host, model, self._margin_mib, learned)

    async def add(self, spec: EndpointSpec) -> Endpoint:
        """Store a new endpoint that was checked. Raises Conflict; then nothing has changed."""
        now = self._clock()
        endpoint = Endpoint(spec=spec, created_at=now, updated_at=now, changed_at=now)
        await self._store.add(endpoint)
        self._keep(endpoint)
        self.noted("created", endpoint, ())
        return endpoint

    def _keep(self, endpoint: Endpoint) -> None:
        self._endpoints[endpoint.spec.name] = endpoint
        self._index()

    def _require_free(self, name: str, owner: str | None) -> None:
        taken = self._meant.get(name)
        if taken is not None and taken.name != owner:
            kind = "an adapter" if taken.adapter else "an alias"
            what = "an endpoint" if taken.name == name else f"{kind} of the endpoint '{taken.name}'"
            raise Conflict(
                f"The name '{name}' is taken by {what}: PATCH that one, or choose another name", param="name"
            )

    async def merged(self, name: str, patch: dict[str, Any], host: HostFacts) -> EndpointSpec:
        """An endpoint's spec after a partial change. Raises NotFound, BadRequest, Conflict, DiskUnavailable."""
        old = self.get(name)
        if patch.get("name", name) != name:
            raise BadRequest("An endpoint cannot be renamed: make a new one, or add an alias", param="name")
        try:
            spec = msgspec.convert(msgspec.to_builtins(old.spec) | patch, EndpointSpec)
        except msgspec.ValidationError as problem:
            raise BadRequest(f"The change does not fit: {problem}") from None
        for other in (*spec.aliases, *spec.adapters):
            self._require_free(other, owner=name)
        return self._settled(spec, old.spec, await self.files(spec), host, has_room=patch.get("lora") is not None)

    async def adapted(self, name: str, adapter: str, source: AdapterSource | None, host: HostFacts) -> EndpointSpec:
        """An endpoint's spec with this adapter added, replaced, or (None) taken away.

        Raises NotFound, BadRequest, Conflict, DiskUnavailable.
        """
        adapters = dict(self.get(name).spec.adapters)
        if source is not None:
            adapters[adapter] = source
        elif adapters.pop(adapter, None) is None:
            near = near_names(adapter, adapters)
            raise NotFound(f"The endpoint '{name}' has no adapter '{shown_name(adapter)}'{near}")
        return await self.merged(name, {"adapters": msgspec.to_builtins(adapters)}, host)

    async def replace(self, spec: EndpointSpec, *, again: bool = False) -> Endpoint:
        """Store the changed spec of an endpoint; `again`: try even what was rolled back before.

        Raises NotFound if it was deleted meanwhile.
        """
        async with self._changing:
            old, now = self.get(spec.name), self._clock()
            changed = msgspec.structs.replace(old, spec=spec, updated_at=now)
            if again or not is_served_alike(old.spec, spec):
                changed = msgspec.structs.replace(changed, changed_at=now, rolled_back=None)
            fields = tuple(
                field for field in EndpointSpec.__struct_fields__ if getattr(old.spec, field) != getattr(spec, field)
            )
            change = Change("endpoint.change", spec.name, shown(old.spec), shown(spec))
            stored = await self._store_again(changed, change)
            self.noted("changed", stored, fields)
            return stored

    async def _store_again(self, endpoint: Endpoint, change: Change | None = None) -> Endpoint:
        await self._store.update(endpoint, change)
        if endpoint.spec.name in self._endpoints:
            self._keep(endpoint)
        return endpoint

    def is_proven(self, spec: EndpointSpec, path: str) -> bool:
        """Whether a worker of this spec, with the files at `path`, is known to have served."""
        endpoint = self._endpoints.get(spec.name)
        return endpoint is not None and endpoint.good is not None and is_served_alike(endpoint.good, pinned(spec, path))

    async def prove(self, spec: EndpointSpec, path: str) -> bool:
        """A worker serves as `spec` wants, from the model's files at `path`: what a change that fails falls back to.

        False where the endpoint is another one by now. Raises sqlite3.Error.
        """
        async with self._changing:
            endpoint = self._endpoints.get(spec.name)
            if endpoint is None or not is_served_alike(endpoint.spec, spec) or endpoint.rolled_back is not None:
                return False
            await self._store_again(msgspec.structs.replace(endpoint, good=pinned(spec, path)))
            return True

    async def roll_back(self, spec: EndpointSpec, failure: Failure, *, same_files: bool) -> RolledBack | None:
        """Workers as `spec` wants them fail: serve as before until the next change. Raises sqlite3.Error.

        None where the endpoint is another one by now, or nothing of it ever served.
        """
        async with self._changing:
            endpoint = self._endpoints.get(spec.name)
            if endpoint is None or endpoint.good is None or not is_served_alike(endpoint.spec, spec):
                return None
            changed = changed_fields(endpoint.good, spec, same_files=same_files)
            rolled_back = RolledBack(changed=changed, failure=failure, at=self._clock())
            back = shown(endpoint.good) | {"failure": failure.kind.value}
            change = Change("endpoint.roll_back", spec.name, shown(endpoint.spec), back)
            await self._store_again(msgspec.structs.replace(endpoint, rolled_back=rolled_back), change)
            return rolled_back

    async def discard(self, name: str) -> bool:
        """Delete what is stored under this name and can't be read: then the name is free. Whether there was any."""
        return await self._store.discard(name)

    async def remove(self, name: str) -> Endpoint:
        """Delete an endpoint. Raises NotFound."""
        endpoint = self.get(name)
        await self._store.remove(endpoint.spec)
        del self._endpoints[name]
        self._index()
        self.noted("deleted", endpoint, ())
        return endpoint


def _if_any(files: Files, source: AdapterSource) -> AdapterFacts | None:
    try:
        return files.adapter(source)
    except BadRequest:
        return None


def _meant(spec: EndpointSpec, adapter: str = "") -> Meant:
    return Meant(spec.name, adapter, spec.allow, spec.price)


def shown_name(name: str) -> str:
    """A name that somebody sent, as it stands in a message."""
    return name if len(name) <= NAMED_CHARACTERS else f"{name[:NAMED_CHARACTERS]}…"


def near_names(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that names what the caller may have meant."""
    known = sorted(known)
    if not known:
        return ": none is registered yet; make one with POST /api/endpoints"
    # a name may be as long as a body: comparing one of some megabytes would take seconds
    near = get_close_matches(name, known, n=3, cutoff=0.5) if len(name) <= NAMED_CHARACTERS else []
    if near:
        return f". Did you mean {' or '.join(f'{one!r}' for one in near)}?"
    shown = ", ".join(f"{one!r}" for one in known[:10])
    return f". There is: {shown}{', …' if len(known) > 10 else ''}"  # noqa: PLR2004 - as many as fit a sentence
