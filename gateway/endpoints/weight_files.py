"""The weight files of a model's folder: which of them an engine loads, and what their headers say."""

import hashlib
import json
from pathlib import Path

from gateway.memory.config import ModelShape
from gateway.memory.weights import (
    LENGTH_BYTES,
    HeaderError,
    Tensor,
    Weights,
    header_length,
    read_header,
    sum_up,
)

INDEX = "model.safetensors.index.json"
INDEX_LIMIT = 64 * 1024 * 1024
OTHER_SUFFIXES = (".bin", ".pt", ".gguf")
ORIGINAL = "consolidated"
"""Files of this name hold the same weights once more, in their maker's own form."""

Stamp = tuple[tuple[str, int, int], ...]
"""Name, bytes and time of change (ns) of each weight file."""


class WeightFiles:
    """The files of one folder at one moment. Raises OSError where the folder can't be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found = sorted(item for item in folder.iterdir() if item.suffix in (".safetensors", *OTHER_SUFFIXES))
        self._sizes = {item.name: item.stat() for item in found}
        self.stamp: Stamp = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in self._sizes.items())

    def revision(self, path: str) -> str:
        """A text that is another one whenever the files are others; a hub model's folder is named by its commit."""
        if path.startswith("hub/"):
            return path.rpartition("/")[2]
        return hashlib.sha256(repr(self.stamp).encode()).hexdigest()[:16]

    def sum_up(self, shape: ModelShape | None) -> Weights:
        """The weights an engine loads; from the sizes of the files where a header can't be read."""
        names = self._loaded()
        on_disk = sum(self._sizes[name].st_size for name in names)
        if not names or not all(name.endswith(".safetensors") for name in names):
            return Weights(cut=on_disk, on_disk=on_disk)
        try:
            tensors = [tensor for name in names for tensor in self._header(name)]
        except HeaderError:
            return Weights(cut=on_disk, on_disk=on_disk)
        return sum_up(tensors, shape, on_disk)

    def _header(self, name: str) -> list[Tensor]:
        with (self._folder / name).open("rb") as file:
            return read_header(file.read(header_length(file.read(LENGTH_BYTES))))

    def _loaded(self) -> list[str]:
        """As vLLM chooses: safetensors before all others, of those what the index names, or all but the maker's own."""
        tensors = [name for name in self._sizes if name.endswith(".safetensors")]
        if not tensors:
            for suffix in OTHER_SUFFIXES:
                others = [name for name in self._sizes if name.endswith(suffix)]
                if others:
                    return others
            return []
        indexed = self._indexed()
        if indexed and indexed <= set(tensors):
            return sorted(indexed)
        ours = [name for name in tensors if not name.startswith(ORIGINAL)]
        return ours or tensors

    def _indexed(self) -> set[str]:
        """The files that the index names; none where there is no index that can be read."""
        try:
            index = self._folder / INDEX
            if index.stat().st_size > INDEX_LIMIT:
                return set()
            found = json.loads(index.read_bytes())["weight_map"].values()
            return {name for name in found if isinstance(name, str)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return set()
