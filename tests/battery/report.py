"""What came of a row, read from pytest's report, and the table of all."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec

from tests.battery.rows import Row


class Outcome(msgspec.Struct, kw_only=True):
    """What came of one row."""

    row: str
    tests: int = 0
    figures: dict[str, str] = {}
    """What the tests have told, by name."""
    problem: str = ""
    """Why it does not hold; empty where it does."""
    seconds: float = 0.0

    def told(self) -> str:
        """The figures in a line."""
        return "; ".join(f"{name} {value}" for name, value in self.figures.items()) or f"{self.tests} tests"


def read(row: str, report: Path) -> Outcome:
    """The outcome by pytest's JUnit file. A test that was skipped has shown nothing."""
    outcome = Outcome(row=row)
    troubles: list[str] = []
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - written by our own pytest a moment ago
        outcome.tests += 1
        for found in case.iter("property"):
            outcome.figures[found.attrib["name"]] = found.attrib["value"]
        troubles += [f"{child.tag}: {case.attrib['name']}" for child in case if child.tag in TROUBLES]
    outcome.problem = "; ".join(troubles) or ("" if outcome.tests else "no test was found")
    return outcome


TROUBLES = frozenset({"failure", "error", "skipped"})


def markdown(rows: Iterable[Row], outcomes: Mapping[str, Outcome]) -> str:
    """The table, and the tests of each row, as docs/reliability.md has them."""
    lines = ["| # | what | goal | found |", "|---|---|---|---|"]
    for row in rows:
        outcome = outcomes.get(row.name)
        found = "" if outcome is None else f"{outcome.told()}{f'. **{outcome.problem}**' if outcome.problem else ''}"
        lines.append(f"| {row.name} | {row.what} | {row.goal} | {found} |")
    return "\n".join([*lines, "", *(named(row) for row in rows)])


def named(row: Row) -> str:
    """A row's tests, by file."""
    files: dict[str, list[str]] = {}
    for test in row.tests:
        file, _, name = test.partition("::")
        files.setdefault(file, []).extend([f"`{name}`"] if name else [])
    told = [f"`{file}`{': ' + ', '.join(names) if names else ''}" for file, names in files.items()]
    return f"- {row.name}: " + "; ".join([*told, *([f"`scripts/bench --only {row.bench}`"] if row.bench else [])])
