"""The models folder as the gateway reads it: which models are there, and whether a folder is a model at all."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gateway.endpoints.adapter_files import adapter_revision, read_adapter
from gateway.endpoints.types import AdapterFacts, AdapterSource, EndpointSpec, ModelFacts
from gateway.endpoints.weight_files import Stamp, WeightFiles
from gateway.errors import BadRequest
from gateway.memory.config import read_shape

COMMIT = re.compile(r"[0-9a-f]{7,64}")
CONFIG_LIMIT = 4 * 1024 * 1024
"""Bytes; a larger config.json is not one."""

S = TypeVar("S")
T = TypeVar("T")


class ModelsFolder:
    """Looks into the models folder; never writes. May be asked from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._adapters: dict[str, AdapterFacts] = {}
        self._read: dict[str, tuple[tuple[Stamp, dict[str, Any]], ModelFacts]] = {}

    def find(self, spec: EndpointSpec) -> ModelFacts | None:
        """The files of an endpoint's model; None if a hub model has not been downloaded yet.

        The first time, and after a change, that reads index and headers: a second for a large model. Raises BadRequest
        where a local folder is missing or is no model, or its files can't be read.
        """
        with _told(spec.model, "model"):
            found = self._place(spec.model, spec.revision, "model")
            return self._facts(*found) if found is not None else None

    def find_adapter(self, source: AdapterSource) -> AdapterFacts | None:
        """The files of a LoRA adapter; None if it has not been downloaded yet. Raises BadRequest."""
        with _told(source.model, "adapters"):
            found = self._place(source.model, source.revision, "adapters")
            return self._adapter(*found) if found is not None else None

    def _adapter(self, path: str, folder: Path) -> AdapterFacts:
        """Read again only where the files are others than before."""
        revision = adapter_revision(path, folder)
        known = self._adapters.get(path)
        if known is None or known.revision != revision:
            known = self._adapters[path] = read_adapter(path, folder, revision)
        return known

    def _place(self, model: str, revision: str | None, param: str) -> tuple[str, Path] | None:
        """Path as the manager wants it, and folder; None for a hub repository that is not here."""
        return self._local(model, param) if model.startswith("local/") else self._hub(model, revision or "main")

    def _local(self, model: str, param: str) -> tuple[str, Path]:
        folder = self._folder / "local" / model.removeprefix("local/")
        if not folder.is_dir():
            there = self._local_names()
            known = f"; there is {', '.join(there)}" if there else "; the folder local/ holds none yet"
            raise BadRequest(
                f"There is no folder '{model}' under the models folder{known}. Copy it there, or name a hub repository",
                param=param,
            )
        return model, folder

    def _local_names(self) -> list[str]:
        try:
            return sorted(f"local/{item.name}" for item in (self._folder / "local").iterdir() if item.is_dir())[:20]
        except OSError:
            return []

    def _hub(self, model: str, revision: str) -> tuple[str, Path] | None:
        if COMMIT.fullmatch(revision) and (self._folder / "hub" / model / revision).is_dir():
            reference = revision
        else:
            try:
                reference = (self._folder / "hub" / model / "refs" / revision.replace("/", "--")).read_text().strip()
            except (FileNotFoundError, NotADirectoryError):
                return None
        if not COMMIT.fullmatch(reference):
            return None
        path = f"hub/{model}/{reference}"
        folder = self._folder / path
        return (path, folder) if folder.is_dir() else None

    def _facts(self, path: str, folder: Path) -> ModelFacts:
        config = folder / "config.json"
        try:
            if config.stat().st_size > CONFIG_LIMIT:
                raise ValueError("too large")
            values = json.loads(config.read_bytes())
            if not isinstance(values, dict):
                raise TypeError("not an object")
        except FileNotFoundError:
            raise BadRequest(
                f"The folder '{path}' has no config.json, so it is not a model an engine can load: copy the whole "
                "repository, not only its weights",
                param="model",
            ) from None
        except (ValueError, TypeError, RecursionError) as problem:
            raise BadRequest(f"The config.json of '{path}' cannot be read ({problem})", param="model") from None
        files = WeightFiles(folder)
        known = self._read.get(path)
        if known is not None and known[0] == (files.stamp, values):
            return known[1]
        shape = read_shape(values)
        facts = ModelFacts(path=path, weights=files.sum_up(shape), shape=shape, revision=files.revision(path))
        self._read[path] = ((files.stamp, values), facts)
        return facts


class Files:
    """What the files of an endpoint's model and adapters told when they were read."""

    def __init__(self, folder: ModelsFolder, spec: EndpointSpec) -> None:
        """Read them. What is wrong with one is told to who asks for it."""
        self._model = _tried(folder.find, spec)
        self._adapters = {source: _tried(folder.find_adapter, source) for source in spec.adapters.values()}

    def model(self) -> ModelFacts | None:
        """The model's; None if it has to be downloaded first. Raises BadRequest for a broken folder."""
        return _given(self._model)

    def adapter(self, source: AdapterSource) -> AdapterFacts | None:
        """An adapter's; None if it has to be downloaded first. Raises BadRequest for a broken folder."""
        return _given(self._adapters[source])


def _tried(read: Callable[[S], T], source: S) -> T | BadRequest:
    try:
        return read(source)
    except BadRequest as problem:
        return problem


def _given(found: T | BadRequest) -> T:
    if isinstance(found, BadRequest):
        raise found
    return found


@contextlib.contextmanager
def _told(model: str, param: str) -> Iterator[None]:
    """Trouble with files (a link to nowhere, no permission) as a refusal that does not tell where they lie."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "a file is not text"
        raise BadRequest(f"The files of '{model}' cannot be read ({why})", param=param) from problem
