"""SECURITY.md names the test behind each claim: those tests exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
FILE = re.compile(r"`((?:unit|integration|docker|engine|gpu)/test_\w+\.py)`")
NAME = re.compile(r"`(test_\w+)`")


def test_every_test_file_that_is_named_is_there() -> None:
    named = set(FILE.findall(TEXT))
    assert len(named) > 20
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []


def test_every_test_that_is_named_stands_in_a_file_named_beside_it() -> None:
    """In the same line, or the one before: tables have one line, paragraphs are wrapped."""
    missing = []
    lines = TEXT.splitlines()
    for number, line in enumerate(lines):
        beside = "\n".join(lines[max(number - 1, 0) : number + 2])
        sources = [(ROOT / "tests" / name).read_text(encoding="utf-8") for name in FILE.findall(beside)]
        missing += [name for name in NAME.findall(line) if not any(f"def {name}(" in source for source in sources)]
    assert missing == []
    assert len(NAME.findall(TEXT)) > 15


def test_every_script_and_setting_that_is_named_is_there() -> None:
    scripts = {name.removeprefix("scripts/") for name in re.findall(r"scripts/\w+", TEXT)}
    assert scripts <= {path.name for path in (ROOT / "scripts").iterdir()}
    documented = (ROOT / "docs" / "configure.md").read_text(encoding="utf-8")
    settings = set(re.findall(r"HOSTLER_[A-Z_]+", TEXT))
    assert {name for name in settings if f"`{name}`" not in documented} == set()
