"""The battery has every row, each with tests that exist, and docs/reliability.md tells them all."""

import ast
from pathlib import Path

import pytest

from tests.battery.report import markdown, named, read
from tests.battery.rows import ROWS, Row

ROOT = Path(__file__).resolve().parents[2]
TOLD = (ROOT / "docs" / "reliability.md").read_text()


def test_no_row_is_missing() -> None:
    assert [row.name for row in ROWS] == [f"T{number}" for number in range(1, 34)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_tests_of_a_row_exist_and_are_named_in_the_docs(row: Row) -> None:
    assert row.tests or row.bench
    for test in row.tests:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert not name or name in found, test
    assert named(row) in TOLD.splitlines()
    assert f"| {row.name} | {row.what} | {row.goal} | " in TOLD


REPORT = """<testsuites><testsuite>
<testcase name="test_a"><properties><property name="slowest" value="3 ms"/></properties></testcase>
<testcase name="test_b"><{what} message="x"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize("what", ["failure", "error", "skipped"])
def test_a_row_holds_only_where_every_test_of_it_ran_and_passed(tmp_path: Path, what: str) -> None:
    report = tmp_path / "found.xml"
    report.write_text(REPORT.replace("{what}", what))
    outcome = read("T1", report)
    assert (outcome.tests, outcome.told(), outcome.problem) == (2, "slowest 3 ms", f"{what}: test_b")
    assert f"slowest 3 ms. **{what}: test_b** |" in markdown(ROWS[:1], {"T1": outcome})
    report.write_text(REPORT.replace("{what}", "system-out"))
    assert read("T1", report).problem == ""
    report.write_text("<testsuites/>")
    assert read("T1", report).problem == "no test was found"
