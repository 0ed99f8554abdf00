"""The command line of the gateway: serve with what the environment says, or check an audit trail."""

import argparse
import os
import re
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

import gateway
from gateway import logs
from gateway.application import Application
from gateway.audit.verify import verify
from gateway.certificate import Certificate, CertificateError
from gateway.database.connection import FILE_NAME
from gateway.server import serve
from gateway.settings import Settings, SettingsError, load

BROKEN, UNUSABLE = 1, 2
ANCHOR = re.compile(r"(\d{1,18}):([0-9a-f]{64})")


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says. Exit status 2 where it or the settings are unusable."""
    given = _parser().parse_args(arguments)
    if given.command == "audit":
        sys.exit(_verify(given.file or _database(), given.anchor))
    try:
        settings = load(os.environ)
        logs.set_up(settings.log_level, settings.log_format)
        certificate = _certificate(settings)
    except (SettingsError, CertificateError) as problem:
        sys.stderr.write(f"hostler gateway: {problem}\n")
        sys.exit(UNUSABLE)
    os.umask(0o007)
    application = Application(settings, certificate)
    serve(application, settings, application.direct, application.stopping, certificate)


def _certificate(settings: Settings) -> Certificate | None:
    """Raises CertificateError."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificate(settings.tls_certificate, settings.tls_key)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gateway",
        description="Hostler's gateway: the OpenAI-compatible HTTP server. Its settings are environment variables "
        "(docs/configure.md); scripts/up starts it together with the worker manager.",
    )
    parser.add_argument("--version", action="version", version=f"hostler {gateway.__version__}")
    commands = parser.add_subparsers(dest="command", title="instead of serving", metavar="COMMAND")
    audit = commands.add_parser("audit", help="check the audit trail of a database file")
    audit.add_argument("verb", choices=["verify"])
    audit.add_argument("file", nargs="?", type=Path, help=f"the file, or a backup of it; else HOSTLER_DATA/{FILE_NAME}")
    audit.add_argument(
        "--anchor",
        type=_anchor,
        metavar="NUMBER:HASH",
        help="a record you have kept, from the log or this command",
    )
    return parser


def _database() -> Path:
    return Path(os.environ.get("HOSTLER_DATA") or Settings.data) / FILE_NAME


def _anchor(text: str) -> tuple[int, bytes]:
    """Raises ArgumentTypeError for what is no number and hash."""
    found = ANCHOR.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError("it takes a record's number and its hash of 64 hex digits, a colon between")
    return int(found[1]), bytes.fromhex(found[2])


def _verify(path: Path, anchor: tuple[int, bytes] | None) -> int:
    """Print what the chain shows; the exit status."""
    try:
        verdict = verify(path, anchor)
    except sqlite3.Error as problem:
        sys.stderr.write(f"{path} cannot be checked: {problem}\n")
        return UNUSABLE
    if verdict.problem:
        sys.stdout.write(f"BROKEN: {verdict.problem}. {verdict.records} records before it are whole\n")
        return BROKEN
    sys.stdout.write(f"whole: {verdict.records} records, the last one {verdict.records}:{verdict.head.hex()}\n")
    return 0
