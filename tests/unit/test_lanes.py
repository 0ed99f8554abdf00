"""What a failed test gets: one more run, alone, and a loud word if it passes then."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.processes import REPOSITORY

CODE = """
import sys
from lib import lanes
pytest = [sys.executable, "-m", "pytest", "-q"]
for title, passed in lanes.run([lanes.Lane(pytest, [folder], {}, n) for n, folder in enumerate(sys.argv[1:], 900)]):
    print("LINE", passed, title)
"""
PASSES = "def test_fine(): pass"
FAILS = "def test_broken(): assert 0"
ONCE = """
from pathlib import Path
def test_unsteady():
    seen = Path(__file__).with_name("seen")
    first, _ = not seen.exists(), seen.touch()
    assert not first
"""


def ran(tmp_path: Path, *lanes: tuple[str, ...]) -> tuple[list[str], str]:
    """The lines of the summary after these lanes, each of some files of tests; and all that was said."""
    folders = []
    for number, files in enumerate(lanes):
        folder = tmp_path / f"lane{number}"
        folder.mkdir()
        for place, text in enumerate(files):
            (folder / f"test_{number}{place}.py").write_text(text)
        folders.append(str(folder))
    done = subprocess.run(
        [sys.executable, "-c", CODE, *folders],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": "scripts"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("LINE ") for line in done.stdout.splitlines() if line.startswith("LINE ")]
    return [line.split(" (")[0] for line in lines], done.stdout


def test_what_passes_alone_is_named_as_unsteady_and_what_fails_twice_has_failed(tmp_path: Path) -> None:
    lines, told = ran(tmp_path, (PASSES, ONCE), (FAILS, ONCE, PASSES))
    good, unsteady, bad = lines
    assert good == f"True pytest {tmp_path}/lane0"
    assert unsteady.startswith("True UNSTEADY")
    assert unsteady.endswith("test_01.py::test_unsteady")
    assert bad == f"False pytest {tmp_path}/lane1"
    assert told.count("assert not first") == 2, "what an unsteady test said is told"


def test_where_many_fail_nothing_runs_again(tmp_path: Path) -> None:
    lines, told = ran(tmp_path, (FAILS,) * 6)
    assert lines == [f"False pytest {tmp_path}/lane0"]
    assert "once more" not in told
