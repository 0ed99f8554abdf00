"""Stop everything that scripts/up started: the gateway, the worker manager, and every engine. Data stays."""

import argparse
import shutil

from lib import compose, dotenv, machine, processes
from lib.console import ROOT, confirm, say, step

GATEWAY_STOP_MARGIN_SECONDS = 15
"""Beside the time that running requests get (HOSTLER_DRAIN_SECONDS)."""
MANAGER_STOP_SECONDS = 20


def parse(words: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="scripts/down", description=__doc__)
    parser.add_argument(
        "--purge", action="store_true", help="also delete the database with its keys, and the caches; asks first"
    )
    parser.add_argument("--models", action="store_true", help="with --purge: also the models folder; asks again")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    return parser.parse_args(words)


def stop_processes() -> bool:
    """True if anything ran."""
    if not processes.anything_left():
        return False
    with step("stopping the gateway (running requests may finish)"):
        drain = float(dotenv.settings().get("HOSTLER_DRAIN_SECONDS") or 30)
        processes.stop("gateway", drain + GATEWAY_STOP_MARGIN_SECONDS)
    # the manager before its engines: it would take a stopped engine for a crash, and start it again
    with step("stopping the worker manager and the engines"):
        processes.stop("worker_manager", MANAGER_STOP_SECONDS)
        processes.stop_workers()
    return True


def stop_docker() -> bool:
    """True if there was anything to stop."""
    if machine.docker_trouble() or not compose.exists():
        return False
    with step("stopping the containers"):
        compose.down(purge=False)
    return True


def purge(options: argparse.Namespace) -> None:
    """Delete the data, after a question."""
    settings = dotenv.settings()
    folders = [ROOT / (settings.get("HOSTLER_DATA") or "data"), processes.run_folder()]
    docker = machine.docker_trouble() is None
    say("To be deleted: " + ", ".join(map(str, folders)) + (" and the Docker volumes" if docker else ""))
    if not (options.yes or confirm("Delete the database, all keys and usage, logs and caches?")):
        say("Nothing was deleted.")
        return
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    if docker:
        compose.down(purge=True)
    models = ROOT / (settings.get("HOSTLER_MODELS") or "models")
    if options.models and (options.yes or confirm(f"Also delete every model in {models}?")):
        shutil.rmtree(models, ignore_errors=True)
    say("Deleted. .env stays: delete it yourself for a new admin key.")


def run(words: list[str]) -> int:
    """The whole of scripts/down; its exit code."""
    options = parse(words)
    stopped = [stop_processes(), stop_docker()]
    say("Hostler is stopped." if any(stopped) else "Hostler does not run here.")
    if options.purge:
        purge(options)
    return 0
