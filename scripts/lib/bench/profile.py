"""Where the gateway's CPU time goes: py-spy's samples of the running gateway, added up."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from lib.bench import environments
from lib.console import Problem

SAMPLES_PER_SECOND = 500
LINES = 25
WHERE = re.compile(r" \((?:[^()]*/)?([^/()]+?)(?::\d+)?\)")
"""The file and line of a frame such as `pump (upstream.py:120)`."""
LOOP = "run_until_complete"
WAITING = ("uv__io_poll", "epoll_wait", "__epoll", "uv_run")
NOISE = re.compile(r"^0x|\(libc|\(libpython|\.h\)|\.h:\d+\)|\(<frozen|^_?Py[A-Z_]")
"""Frames that say nothing to a reader of Python: they count for the one that called them."""
ALL = 0.99
"""What is on every stack is of no interest."""


def program() -> Path:
    """py-spy from PATH, or installed for the bench. Raises Problem."""
    found = shutil.which("py-spy")
    return Path(found) if found else environments.of_packages("py-spy", "py-spy") / "py-spy"


def record(pid: int, seconds: float, output: Path, core: int) -> "subprocess.Popen[str]":
    """Begin to sample a process for so long; folded stacks go to `output`."""
    words = ["--pid", str(pid), "--duration", str(max(1, round(seconds))), "--rate", str(SAMPLES_PER_SECOND)]
    words += ["--format", "raw", "--native", "--output", str(output)]
    command = ["taskset", "-c", str(core), str(program()), "record", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def folded(sampler: "subprocess.Popen[str]", output: Path, seconds: float) -> str:
    """The folded stacks, once sampling is over. Raises Problem."""
    try:
        said, _ = sampler.communicate(timeout=seconds + 30)
    except subprocess.TimeoutExpired:
        sampler.kill()
        sampler.communicate()
        raise Problem("py-spy did not end in time") from None
    if sampler.returncode != 0 or not output.exists():
        raise Problem(
            f"py-spy could not sample the gateway (it needs root, or kernel.yama.ptrace_scope=0): {said[-400:]}"
        )
    return output.read_text(encoding="utf-8")


def shares(stacks: str) -> tuple[Counter[str], Counter[str]]:
    """Of folded stacks (`frame;frame COUNT`): samples by innermost function, and by every function on the stack.

    Only the event loop's thread counts, and only while it does not wait for events.
    """
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for line in stacks.splitlines():
        text, _, count = line.rpartition(" ")
        if LOOP not in text or not count.isdigit():
            continue
        every = text.split(";")
        frames = [WHERE.sub(r" (\1)", frame) for frame in every if not NOISE.search(frame)]
        if not frames or frames[-1].startswith(WAITING):
            continue
        below = " and below" if NOISE.search(every[-1]) else ""
        own[frames[-1] + below] += int(count)
        whole.update(dict.fromkeys(frames, int(count)))
    return own, whole


def lines(stacks: str) -> list[str]:
    """The functions that took most, as text."""
    own, whole = shares(stacks)
    total = own.total() or 1
    said = [f"{total} samples of the event loop at work. In the function itself ('and below': with C and the kernel):"]
    said += [f"  {count / total:6.1%}  {name}" for name, count in own.most_common(LINES)]
    said.append("With all they called:")
    said += [f"  {count / total:6.1%}  {name}" for name, count in whole.most_common(2 * LINES) if count < ALL * total]
    return said
