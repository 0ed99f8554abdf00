"""The limit of open files that a shell gives is no limit on streams."""

import resource
import subprocess
import sys

import pytest

CHILD = (
    "import resource, gateway.server as s; s.allow_open_files({}); print(resource.getrlimit(resource.RLIMIT_NOFILE))"
)


@pytest.mark.parametrize(
    ("given", "wanted", "found"),
    [((256, 4096), 1024, (1024, 4096)), ((256, 512), 1024, (512, 512)), ((2048, 4096), 1024, (2048, 4096))],
)
def test_the_soft_limit_is_raised_as_far_as_the_hard_one_goes(
    given: tuple[int, int], wanted: int, found: tuple[int, int]
) -> None:
    """In a process of its own: a limit that was lowered stays so."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD.format(wanted)],
        capture_output=True,
        check=True,
        timeout=60,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, given),
    )
    assert child.stdout.strip() == str(found)
