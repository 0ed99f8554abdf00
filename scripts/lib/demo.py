"""The demo: a tiny model with random weights, made here, and an endpoint of that name."""

import shutil
import sys

from lib import address, dotenv
from lib.console import ROOT, Problem, do, say, step

NAME = "demo"
CREATED, CONFLICT = 201, 409
ENDPOINT = {
    "name": NAME,
    "model": f"local/{NAME}",
    "max_model_len": 1024,
    # nothing to compile: it starts in half the time, and speed is not what a demo model is for
    "engine_args": {"enforce-eager": True, "max-num-seqs": 8},
    "idle_seconds": 900,
}


def make_model() -> None:
    """Write models/local/demo unless it is there."""
    folder = dotenv.models_folder() / "local" / NAME
    if (folder / "config.json").exists() and any(folder.glob("*.safetensors")):
        return
    shutil.rmtree(folder, ignore_errors=True)
    with step(f"making a tiny model with random weights in {folder}"):
        do([sys.executable, str(ROOT / "scripts" / "make_demo_model"), str(folder)], "Making the demo model")


def register() -> None:
    """Create the endpoint, or find it there. Raises Problem with the gateway's own words."""
    status, body = address.call("POST", "/api/endpoints", ENDPOINT)
    if status == CONFLICT:
        say(f"   the endpoint {NAME} is registered already")
    elif status in {200, CREATED}:
        say(f"   the endpoint {NAME} is registered")
    else:
        raise Problem(f"the endpoint {NAME} could not be registered ({status}): {address.message(body)}")
