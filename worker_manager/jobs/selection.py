"""Which files of a repository an engine needs. Pure; every name in it comes from the hub and is not trusted."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

import msgspec

from worker_manager.jobs.failures import DownloadError, ModelMissingError

TEXT_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe"})
OTHER_FORMATS = frozenset({"coreml", "flax", "gguf", "metal", "onnx", "openvino", "original"})
"""Folders that hold the same weights again, for other programs."""
TRAINING_STATE = frozenset({"optimizer.bin", "random_states.bin", "scheduler.bin", "training_args.bin"})
MODULE_FOLDER = re.compile(r"^[0-9]+_\w+$")
"""`1_Pooling`, `2_Dense`: the later modules of a sentence-transformers model."""
SHA256 = re.compile(r"^[0-9a-f]{64}$")


class HubFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file as the hub lists it."""

    path: str
    """Relative to the repository, with forward slashes."""
    size: int
    """Bytes."""
    sha256: str | None = None
    """Of large (LFS) files."""
    git_sha1: str | None = None
    """Of the other files: git's hash, over `blob SIZE\\0` and the content."""


def choose(files: Iterable[HubFile]) -> tuple[HubFile, ...]:
    """The files to fetch, small ones first.

    Weights as safetensors, or as .bin where there are none; configs, tokenizers and templates. Never code, never the
    same weights twice. Raises `ModelMissingError` if there are no weights, `DownloadError` on a name that would lead
    out of its folder.
    """
    listed = tuple(files)
    for file in listed:
        _check_name(file.path)
    usable = [file for file in listed if _is_usable(PurePosixPath(file.path))]
    weights = _weights(usable)
    if not weights:
        found = sorted({PurePosixPath(file.path).suffix for file in listed} & {".gguf", ".h5", ".onnx", ".pt", ".pth"})
        instead = f" (only {', '.join(found)})" if found else ""
        hint = "Choose a repository with *.safetensors files."
        raise ModelMissingError(f"this revision holds no weights that the engine can load{instead}", hint)
    texts = [file for file in usable if _is_text(file, weights)]
    return tuple(sorted((*texts, *weights), key=lambda file: (file.size, file.path)))


def _check_name(name: str) -> None:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or not name.isprintable():
        raise DownloadError(f"the repository lists a file with an unsafe name: {name!r}", "Don't use this model.")


def _is_usable(path: PurePosixPath) -> bool:
    return not any(part.startswith(".") for part in path.parts) and not OTHER_FORMATS.intersection(path.parts[:-1])


def _weights(files: list[HubFile]) -> list[HubFile]:
    safe = [file for file in files if file.path.endswith(".safetensors")]
    pickled = [file for file in files if _is_pickle(PurePosixPath(file.path))]
    if not safe:
        return pickled
    sharded_twice = any(_name(file).startswith("model") for file in safe)
    kept = [file for file in safe if not (sharded_twice and _name(file).startswith("consolidated"))]
    folders = {PurePosixPath(file.path).parent for file in kept}
    # a module of a sentence-transformers model has weights of its own, and older ones have them only as .bin
    modules = [file for file in pickled if MODULE_FOLDER.match(PurePosixPath(file.path).parts[0])]
    return kept + [file for file in modules if PurePosixPath(file.path).parent not in folders]


def _is_pickle(path: PurePosixPath) -> bool:
    return path.suffix == ".bin" and path.name not in TRAINING_STATE


def _is_text(file: HubFile, weights: list[HubFile]) -> bool:
    path = PurePosixPath(file.path)
    if path.suffix not in TEXT_SUFFIXES:
        return False
    if not path.name.endswith((".bin.index.json", ".safetensors.index.json")):
        return True
    # an index without the weights it lists would send the engine looking for them
    stem = path.name.split(".")[0]
    kind = "." + path.name.split(".")[1]
    return any(_name(weight).startswith(stem) and weight.path.endswith(kind) for weight in weights)


def _name(file: HubFile) -> str:
    return PurePosixPath(file.path).name
