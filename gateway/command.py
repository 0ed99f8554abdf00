"""The command line of the gateway: `--help`, `--version`, or serve with what the environment says."""

import argparse
import os
import sys
from collections.abc import Sequence

import gateway
from gateway import logs
from gateway.app import Application
from gateway.server import serve
from gateway.settings import SettingsError, load


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the settings, set up the log, serve. Exit status 2 for unusable settings."""
    parser = argparse.ArgumentParser(
        prog="python -m gateway",
        description="Hostler's gateway: the OpenAI-compatible HTTP server. Its settings are environment variables "
        "(docs/configure.md); scripts/up starts it together with the worker manager.",
    )
    parser.add_argument("--version", action="version", version=f"hostler {gateway.__version__}")
    parser.parse_args(arguments)
    try:
        settings = load(os.environ)
    except SettingsError as problem:
        sys.stderr.write(f"hostler gateway: {problem}\n")
        sys.exit(2)
    os.umask(0o007)
    logs.set_up(settings.log_level, settings.log_format)
    application = Application(settings)
    serve(application, settings, application.direct, application.stopping)
