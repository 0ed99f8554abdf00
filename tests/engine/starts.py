"""How much sooner a real vLLM on the CPU is ready once its compile caches are filled. Run by scripts/starts.

A whole Hostler in containers, whose caches are new, starts a tiny model that is compiled (TorchInductor, as vLLM does
by default), stops it and starts it again. Before, another endpoint starts the same engine once without compiling
anything, so that image and weights are in the page cache each time. Seconds are those from the order to start until
the endpoint is hot; CPU seconds are the container's own, and depend less on what else the machine does.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from docker import APIClient

from tests.conftest import VLLM_IMAGE
from tests.engine.conftest import make_model
from tests.support.compose import ComposeStack, compose_stack
from tests.support.waiting import wait_until

START_SECONDS = 1200
FLAGS: dict[str, Any] = {"max-num-seqs": 8}


def start(stack: ComposeStack, name: str) -> tuple[float, float]:
    """Start an endpoint's worker; seconds until it is hot, and what CPU its container took for that."""
    began = time.monotonic()
    stack.client.post(f"/api/endpoints/{name}/start").raise_for_status()
    stack.wait_for_state(name, "hot", seconds=START_SECONDS)
    seconds = time.monotonic() - began
    (container,) = [one for worker, one in stack.project.engines().items() if worker.startswith(f"{name}-")]
    used = APIClient().stats(container["Id"], stream=False)["cpu_stats"]["cpu_usage"]["total_usage"]
    return seconds, used / 1e9


def stop(stack: ComposeStack, name: str) -> None:
    """Stop it, and wait until its container is gone."""
    stack.client.post(f"/api/endpoints/{name}/stop").raise_for_status()
    wait_until(
        lambda: not any(worker.startswith(f"{name}-") for worker in stack.project.engines()),
        "the engine is gone",
        seconds=60,
        interval=0.2,
    )


def measure(again: int) -> list[tuple[float, float]]:
    """Seconds and CPU seconds of the first start and of so many later ones."""
    found = []
    with compose_stack(HOSTLER_ENGINE_IMAGE=VLLM_IMAGE, HOSTLER_STOP_SECONDS="5") as stack:
        make_model(stack.models / "local" / "tiny", "llama")
        shutil.copytree(stack.models / "local" / "tiny", stack.models / "local" / "before")
        stack.register("before", "local/before", max_model_len=4096, engine_args={**FLAGS, "enforce-eager": True})
        stack.register("tiny", "local/tiny", max_model_len=4096, engine_args=FLAGS)
        start(stack, "before")
        stop(stack, "before")
        for _ in range(1 + again):
            found.append(start(stack, "tiny"))
            stop(stack, "tiny")
    return found


def main() -> None:
    """Measure, print a table and JSON."""
    parser = argparse.ArgumentParser(prog="scripts/starts", description=__doc__)
    parser.add_argument("--again", type=int, default=2, metavar="N", help="starts after the first one (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON there")
    options = parser.parse_args()
    first, *later = measure(max(1, options.again))
    print(f"{'start':<24}{'seconds':>10}{'CPU seconds':>14}")
    print(f"{'first, caches empty':<24}{first[0]:>10.1f}{first[1]:>14.1f}")
    for seconds, used in later:
        print(f"{'later, caches kept':<24}{seconds:>10.1f}{used:>14.1f}")
    best = min(later)
    ratios = {"seconds": round(best[0] / first[0], 2), "cpu_seconds": round(best[1] / first[1], 2)}
    print(
        f"a later start takes {ratios['seconds']} of the first one's time and {ratios['cpu_seconds']} of its CPU time"
    )
    text = json.dumps({"first": first, "later": later, "ratios": ratios})
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
