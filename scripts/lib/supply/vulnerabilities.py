"""Look for known vulnerabilities in the locked Python packages: pip-audit, every pin, whatever its platform.

Ends with 0 where every package was asked about and nothing is known; 1 where something is; 2 for wrong words; 3 where
not all was scanned, or nothing: no answer is not a good one. Needs a way to the service: OSV, a mirror of it
(--osv-url), or what the Python index says itself (--service pypi). It is no part of scripts/test, whose outcome must
not change with what somebody found out last night: run it each day, and before a release.

It looks at Python packages only. For Debian's in the images, hand `scripts/sbom gateway --image hostler/gateway` to a
scanner; the engine's image is its publisher's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from lib import console
from lib.console import Problem, say, warn
from lib.supply import lock_file
from lib.supply.lock_file import Locked

CLEAN, FOUND, NOT_SCANNED = 0, 1, 3
SECONDS = 600
SHOWN = 100
"""Characters of a description."""
KNOWN_BAD = Locked("jinja2", "2.4.1", "", ("sha256:" + "0" * 64,))
"""Of 2010, with advisories since 2014. A service that knows nothing against it has answered, and said nothing."""


def parse(words: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="scripts/vulnerabilities", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    locks = sorted(path.stem for path in lock_file.FOLDER.glob("*.txt"))
    images = sorted(set(lock_file.LOCK_OF_IMAGE.values()))
    which = f"which of {', '.join(locks)} (default: {' '.join(images)}, as in the images)"
    parser.add_argument("locks", nargs="*", metavar="LOCK", help=which)
    parser.add_argument("--service", choices=("osv", "pypi"), default="osv", help="who is asked (default: osv)")
    parser.add_argument("--osv-url", metavar="URL", help="where OSV's query route is, if not at its own address")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="ID", help="an advisory that does not concern us"
    )
    options = parser.parse_args(words)
    options.locks = options.locks or images
    for name in options.locks:
        if name not in locks:
            parser.error(f"there is no lock {name}; the locks are {', '.join(locks)}")
    return options


def ask(pins: Iterable[Locked], options: argparse.Namespace) -> list[dict[str, Any]]:
    """What pip-audit says of each pin. Raises Problem where it gave no answer."""
    # markers are left out: what only another platform or another Python installs is asked about too
    lines = [f"{pin.name}=={pin.version} " + " ".join(f"--hash={each}" for each in pin.hashes) for pin in pins]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_AUDIT_")}
    with tempfile.TemporaryDirectory(prefix="hostler-audit-") as folder:
        asked = Path(folder) / "locked.txt"
        asked.write_text("\n".join(lines) + "\n", encoding="ascii")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(asked), "--require-hashes", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--vulnerability-service", options.service]
        # an empty cache: what was answered yesterday is no answer
        command += ["--cache-dir", str(Path(folder) / "cache")]
        command += ["--osv-url", options.osv_url] if options.osv_url else []
        command += [word for each in options.ignore for word in ("--ignore-vuln", each)]
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise Problem(f"the service did not answer within {SECONDS} s") from None
    try:
        answered: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = done.stderr.strip().splitlines()[-1:] or ["pip-audit said nothing"]
        raise Problem(f"the service gave no answer that can be read: {last[0][:400]}") from None
    return answered


def unasked(pins: Iterable[Locked], answered: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Packages that nothing was said about, with the reason."""
    told = {canonicalize_name(each["name"]): each for each in answered}
    reasons = {
        pin.name: told[name].get("skip_reason") if (name := canonicalize_name(pin.name)) in told else "no answer"
        for pin in pins
    }
    return {name: str(reason) for name, reason in reasons.items() if reason}


def lines_of(each: dict[str, Any]) -> Iterable[str]:
    """A package's advisories, a line each."""
    for known in each.get("vulns", []):
        aliases = f" ({', '.join(sorted(known['aliases']))})" if known.get("aliases") else ""
        fixed = ", ".join(known.get("fix_versions") or []) or "no version yet"
        text = (known.get("description") or "").strip()[:SHOWN]
        yield f"{each['name']} {each['version']}: {known['id']}{aliases}, mended in {fixed}: {text}"


def judge(pins: list[Locked], answered: list[dict[str, Any]], *, told_the_known: bool) -> int:
    """Say what is known and what is not; the exit code."""
    known = [line for each in answered for line in lines_of(each)]
    for line in sorted(known):
        warn(line)
    open_questions = unasked(pins, answered)
    for name, reason in sorted(open_questions.items())[:5]:
        warn(f"NOT SCANNED: {name}: {reason}")
    if len(open_questions) > 5:  # noqa: PLR2004 - as shown above
        warn(f"NOT SCANNED: {len(open_questions) - 5} further packages")
    if not told_the_known:
        bad = f"{KNOWN_BAD.name} {KNOWN_BAD.version}"
        warn(f"NOT SCANNED: the service knows nothing against {bad}, so it is not believed")
    if known:
        return FOUND
    if open_questions or not told_the_known:
        return NOT_SCANNED
    say(f"{len(pins)} packages were asked about: nothing is known. Debian packages and engines were not looked at.")
    return CLEAN


def run(words: list[str]) -> int:
    """The whole of scripts/vulnerabilities; its exit code."""
    options = parse(words)
    try:
        # by name and version: the locks share most of their packages
        pins = list({(pin.name, pin.version): pin for lock in options.locks for pin in lock_file.read(lock)}.values())
        answered = ask([*pins, KNOWN_BAD], options)
    except Problem as problem:
        warn(f"NOT SCANNED: {problem}")
        return NOT_SCANNED
    bad = [each for each in answered if (each["name"], each.get("version")) == (KNOWN_BAD.name, KNOWN_BAD.version)]
    ours = [each for each in answered if each not in bad]
    return judge(pins, ours, told_the_known=any(each.get("vulns") for each in bad))


if __name__ == "__main__":
    console.main(run)
