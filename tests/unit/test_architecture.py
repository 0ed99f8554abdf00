"""Sizes and habits that lint does not hold."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = sorted(path for package in ("gateway", "worker_manager") for path in (ROOT / package).rglob("*.py"))
MODULE_LINES = 400
FUNCTION_LINES = 50
READS_ENVIRONMENT = {"gateway/command.py", "worker_manager/commands.py"}
BROAD_EXCEPTS = 16

relative = {path: str(path.relative_to(ROOT)) for path in PRODUCT}


def lines_of_functions() -> Iterator[int]:
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("path", PRODUCT, ids=relative.values())
def test_no_module_is_long_and_each_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < MODULE_LINES
    assert ast.get_docstring(ast.parse(text))


def test_functions_are_short() -> None:
    lengths = sorted(lines_of_functions())
    assert lengths[int(len(lengths) * 0.95)] < FUNCTION_LINES


def test_the_environment_is_read_in_one_place_of_each_process() -> None:
    reading = {
        relative[path]
        for path in PRODUCT
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    }
    jobs = {name for name in reading if name.startswith("worker_manager/jobs/")}
    assert reading - jobs <= READS_ENVIRONMENT


def test_every_silenced_type_error_names_its_code() -> None:
    bare = re.compile(r"#\s*type:\s*ignore(?!\[)")
    assert [relative[path] for path in PRODUCT if bare.search(path.read_text())] == []


def test_errors_are_caught_by_name_but_at_the_roots_of_tasks_and_threads() -> None:
    broad = re.compile(r"except (Exception|BaseException)\b")
    assert sum(len(broad.findall(path.read_text())) for path in PRODUCT) <= BROAD_EXCEPTS


def test_nothing_of_ours_is_mocked() -> None:
    mocks = re.compile(r"unittest[.]mock|\bMagic" + r"Mock\b|\bAsync" + r"Mock\b")
    guilty = [
        path.name
        for path in (ROOT / "tests").rglob("*.py")
        if path != Path(__file__) and mocks.search(path.read_text())
    ]
    assert guilty == []


def test_the_numbers_of_the_migrations_have_no_gap_and_none_stands_twice() -> None:
    """Two branches that each add one would find out only where a gateway no longer starts."""
    names = sorted(path.name for path in (ROOT / "gateway/database/migrations").glob("*.sql"))
    assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)]
