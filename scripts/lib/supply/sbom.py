"""List what an image of Hostler is made of: a software bill of materials, CycloneDX 1.6 as JSON.

Python packages come from the lock files, with the hashes of every file, their licences and who needs whom. With --image
the Debian packages of a built image are listed too, and its Python packages must be those of the lock. The same
input gives the same bytes; its time is that of the last commit that touched the locks, or SOURCE_DATE_EPOCH.
"""

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path

import gateway
from lib import console
from lib.supply import document, graph, image, lock_file

PYTHON = "3.13.0"
"""Of the image that the Dockerfile starts from, for markers in the lock; with --image it is asked for."""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="scripts/sbom", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=sorted(lock_file.LOCK_OF_IMAGE), help="which image")
    parser.add_argument("--image", metavar="NAME", help="look into this image too, such as hostler/gateway")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it there instead of printing it")
    return parser.parse_args(words)


def moment() -> datetime:
    """When the locks last changed: SOURCE_DATE_EPOCH, the commit's time, or the file's where there is no git."""
    if said := os.environ.get("SOURCE_DATE_EPOCH"):
        try:
            return datetime.fromtimestamp(int(said), UTC)
        except (ValueError, OverflowError, OSError):
            raise console.Problem(f"SOURCE_DATE_EPOCH={said} is no number of seconds since 1970") from None
    told = console.answer(["git", "log", "-1", "--format=%ct", "--", "requirements", "gateway/__init__.py"])
    if told and told.isdigit():
        return datetime.fromtimestamp(int(told), UTC)
    return datetime.fromtimestamp(int(max(path.stat().st_mtime for path in lock_file.FOLDER.glob("*.txt"))), UTC)


def make(part: str, image_name: str | None) -> str:
    """The document of one image. Raises Problem."""
    found = image.look(image_name) if image_name else None
    python = found.python if found else PYTHON
    lock = lock_file.LOCK_OF_IMAGE[part]
    pins = lock_file.installed(lock_file.read(lock), python)
    if found:
        document.matches(pins, found)
    edges = graph.needs(graph.roots(lock), lock_file.environment(python))
    return document.text(document.build(part, gateway.__version__, pins, edges, moment(), found))


def run(words: list[str]) -> int:
    """The whole of scripts/sbom; its exit code."""
    options = parse(words)
    said = make(options.part, options.image)
    if options.output is None:
        console.say(said.removesuffix("\n"))
        return 0
    try:
        options.output.write_text(said, encoding="utf-8")
    except OSError as problem:
        raise console.Problem(f"{options.output} could not be written: {problem.strerror}") from None
    console.say(f"{options.output}: {said.count(chr(34) + 'bom-ref' + chr(34)) - 1} components")
    return 0


if __name__ == "__main__":
    console.main(run)
