"""The files of a LoRA adapter, copied to where one worker's engine sees them.

A copy, for three reasons. The engine's container sees its own model's folder and nothing else of the models folder, and
mounts can't be added to one that runs. An engine reads the files again whenever it has dropped the adapter from its
memory, so they must not change under it. And vLLM keys its prefix cache by an adapter's name and path: another revision
has another path, so that no answer is made from what the revision before it has cached.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path, PurePosixPath

from worker_manager.contract import Adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
"""All that is copied: no code, nothing that could name another file."""
CONFIG_LIMIT = 1024 * 1024
"""Bytes."""
RESERVE_BYTES = 1024**3
"""Disk that copies leave free: they stay as long as their engine, and any number may be asked for."""


class AdapterCopyError(Exception):
    """The files are not there or can't be copied; the message says which and why, without telling where they lie."""


class AdapterOutsideError(AdapterCopyError):
    """They lie outside the models folder, behind a link or a name that climbs."""


def folder_name(adapter: Adapter) -> str:
    """The name of an adapter's copy: another one for every name, source and revision."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", adapter.name)[:40].strip("-.")
    key = hashlib.sha256(f"{adapter.name}\n{adapter.path}\n{adapter.revision}".encode()).hexdigest()[:16]
    return f"{readable}-{key}"


def place(models: Path, adapter: Adapter, target: Path) -> None:
    """Copy an adapter into `target/<folder_name>`, whole or not at all. Raises AdapterCopyError."""
    wanted = target / folder_name(adapter)
    fresh = target / f".{wanted.name}.new"
    try:
        if wanted.is_dir():
            return
        source = _source(models, adapter)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        _require_room(source, fresh)
        for name in FILES:
            _copy(source, name, fresh / name)
        fresh.rename(wanted)
    except OSError as error:
        raise AdapterCopyError(f"its files cannot be copied ({error.strerror or error})") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _source(models: Path, adapter: Adapter) -> Path:
    if any(part in ("", ".", "..") for part in adapter.path.split("/")):
        raise AdapterOutsideError("its folder leads out of the models folder")
    folder = models / adapter.path
    if not folder.is_dir():
        raise AdapterCopyError(f"its folder {adapter.path!r} does not exist below the models folder")
    _require_inside(models, folder, adapter.path)
    return folder


def _copy(folder: Path, name: str, target: Path) -> None:
    file = folder / name
    if not file.is_file():
        raise AdapterCopyError(f"it has no {name}")
    if file.is_symlink():
        raise AdapterCopyError(f"its {name} is a link: put the file itself there")
    if name == CONFIG and file.stat().st_size > CONFIG_LIMIT:
        raise AdapterCopyError(f"its {name} is larger than {CONFIG_LIMIT} bytes")
    shutil.copyfile(file, target, follow_symlinks=False)


def _require_inside(models: Path, folder: Path, path: str) -> None:
    real = PurePosixPath(os.path.relpath(folder.resolve(), models.resolve()))
    if real.parts[:1] == ("..",):
        raise AdapterOutsideError(f"its folder {path!r} is a link out of the models folder")


def _require_room(source: Path, target: Path) -> None:
    size = sum((source / name).stat().st_size for name in FILES if (source / name).is_file())
    if shutil.disk_usage(target).free - size < RESERVE_BYTES:
        raise AdapterCopyError(f"its {size >> 20} MiB do not fit on the disk of the engines' folder")
