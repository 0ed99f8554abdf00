"""Where a model's folder really is."""

import os
from pathlib import Path


def resolve(models: Path, relative: str) -> str | None:
    """The model's folder with links followed, relative to the models folder; None if there is none.

    Begins with `..` where a link leads out.
    """
    folder = models / relative
    if not folder.is_dir():
        return None
    return os.path.relpath(folder.resolve(), models.resolve())
