"""Runs inside a container: imports vLLM once, then forks for each start that is asked for, which saves a minute each.

A start is asked for by a file `NAME.json` in the folder named first:
`{"words": [...], "env": {...}, "path": [...], "seconds": N}`. Its log goes to `NAME.log`, and `NAME.exit` holds its
exit code (128 + signal), or `null` if it outlived its time or a file `NAME.enough` asked for its end.
"""

import contextlib
import json
import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

FORK = multiprocessing.get_context("fork")


def serve(folder: Path, name: str) -> NoReturn:
    """Be `vllm serve`, in a session of its own."""
    order = json.loads((folder / f"{name}.json").read_text())
    os.setsid()
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order["env"])
    sys.path[:0] = order["path"]
    # vLLM asks for `spawn` on CPUs, which would import everything anew; nothing here has threads yet
    multiprocessing.get_context = lambda *_: FORK  # type: ignore[assignment]
    sys.argv = ["vllm", "serve", *order["words"]]
    from vllm.entrypoints.cli.main import main  # type: ignore[import-not-found]  # noqa: PLC0415 - only in the image

    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - what Python itself does with what nobody caught
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def watch(pid: int, seconds: float, enough: Path) -> int | None:
    """The exit code; None if it had to be ended, for want of time or because the file `enough` says so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not enough.exists():
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            end_group(pid)
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        time.sleep(0.1)
    end_group(pid)
    os.waitpid(pid, 0)
    return None


def end_group(pid: int) -> None:
    """End whatever a start has left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def main() -> None:
    """Serve orders until the container is removed."""
    folder = Path(sys.argv[1])

    (folder / "ready").touch()
    while True:
        for order in sorted(folder.glob("*.json")):
            name = order.stem
            if (folder / f"{name}.exit").exists():
                continue
            pid = os.fork()
            if pid == 0:
                serve(folder, name)
            code = watch(pid, json.loads(order.read_text())["seconds"], folder / f"{name}.enough")
            (folder / f"{name}.exit.new").write_text(json.dumps(code))
            (folder / f"{name}.exit.new").rename(folder / f"{name}.exit")
        time.sleep(0.1)


main()
