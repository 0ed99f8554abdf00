"""The command line: `python -m worker_manager [serve | stop-workers]`."""

import argparse
import asyncio
import os
import sys

from worker_manager import app
from worker_manager.launchers.base import LauncherError
from worker_manager.listener import ListenError
from worker_manager.settings import SettingsError, load

UMASK = 0o007
"""The gateway's group may use what the manager makes, others nothing."""

EPILOG = "Every setting is an environment variable; docs/configure.md lists them."


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m worker_manager", description=__doc__, epilog=EPILOG)
    parser.add_argument(
        "command",
        nargs="?",
        choices=("serve", "stop-workers"),
        default="serve",
        help="serve (the default): run the worker manager; stop-workers: stop every worker and job, then exit",
    )
    command = parser.parse_args(arguments).command
    os.umask(UMASK)
    try:
        settings = load(os.environ)
        if command == "stop-workers":
            count = asyncio.run(app.stop_workers(settings, os.environ))
            sys.stdout.write(f"{count} stopped\n")
        else:
            app.serve(settings, os.environ)
    except (SettingsError, ListenError, LauncherError) as error:
        sys.stderr.write(f"worker manager: {error}\n")
        return 1
    return 0
