"""What somebody can do who has taken over an engine: run by `python -c` in an engine's own container, as its user.

Each attempt is a function. What it may not do raises OSError, and that is its outcome; "done" is an escape.
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
GIB = 1 << 30
FORKS = 10_000
LIBC = ctypes.CDLL(None, use_errno=True)
OUT = ("1.1.1.1", 53), ("172.17.0.1", 80), ("172.17.0.1", 2375), ("169.254.169.254", 80)


def call(name: str, *arguments: object) -> None:
    """A call of the C library that says -1 where it fails."""
    if getattr(LIBC, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write(path: str, text: str = "x") -> None:
    """Write a file that nobody should."""
    Path(path).write_text(text)


def connect_out() -> None:
    """To the Internet, to the machine, to Docker over TCP, to a cloud's metadata: one that is reached is enough."""
    for address in OUT:
        with socket.socket() as reached, contextlib.suppress(OSError):
            reached.settimeout(2)
            reached.connect(address)
            return
    raise OSError(errno.ENETUNREACH, "nobody is reached")


def connect_unix(path: str) -> None:
    """Speak to somebody else's socket."""
    with socket.socket(socket.AF_UNIX) as reached:
        reached.connect(path)


def link_out(target: str) -> None:
    """Through a link in the one folder that others look into."""
    link = Path("/run/engine/link")
    link.symlink_to(target)
    try:
        connect_unix(str(link))
    finally:
        link.unlink()


def other_sockets() -> None:
    """Any socket but the engine's own, anywhere."""
    for folder, _, names in os.walk("/"):
        if folder.startswith(("/proc", "/sys")):
            continue
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(path.lstat().st_mode) and str(path) != "/run/engine/engine.sock":
                    return
    raise OSError(errno.ENOENT, "there is none")


def fill(folder: str, size: int) -> None:
    """A file that is larger than may be, without writing it."""
    path = Path(folder, "large")
    with path.open("wb") as stream:
        path.unlink()
        os.posix_fallocate(stream.fileno(), 0, size)


def raise_limit() -> None:
    """Core files would be written by the kernel, wherever it likes."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except ValueError as error:
        raise PermissionError(errno.EPERM, str(error)) from error


def fork_bomb() -> str:
    """Processes until there are no more; they end with this one."""
    end, hold = os.pipe()
    children = []
    try:
        for _ in range(FORKS):
            if (child := os.fork()) == 0:
                os.close(hold)
                os.read(end, 1)
                os._exit(0)
            children.append(child)
    except OSError as error:
        return f"{errno.errorcode[error.errno or 0]} after {len(children)}"
    finally:
        os.close(hold)
        for child in children:
            os.waitpid(child, 0)
    return "done"


def hoard(folder: str, mebibytes: int) -> str:
    """Write to the machine's disk; it may be over before the end."""
    for number in range(mebibytes):
        Path(folder, f"x{number}").write_bytes(os.urandom(1 << 20))
    return "written"


def lock() -> str:
    """Files that nobody else may count, or delete."""
    Path("/run/engine/a/b").mkdir(parents=True)
    Path("/run/engine/a/b/c").write_bytes(b"x")
    for folder in ("/run/engine/a/b", "/run/engine/a"):
        Path(folder).chmod(0)
    return "locked"


def swap(target: str) -> str:
    """Put a link in the place of the engine's socket; it is followed by those who look for the engine."""
    own, away = Path("/run/engine/engine.sock"), Path("/run/engine/away.sock")
    if not away.exists():
        own.rename(away)
    else:
        own.unlink()
    own.symlink_to(target)
    return "swapped"


def printed(lines: int) -> str:
    """Fill the disk through what Docker keeps of the engine's output."""
    with Path("/proc/1/fd/1").open("w") as out:
        out.writelines("x" * 8191 + "\n" for _ in range(lines))
    return "printed"


ATTEMPTS: dict[str, Callable[[], object]] = {
    "connect out": connect_out,
    "look up a name": lambda: socket.getaddrinfo("example.com", 80),
    "open a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "speak to the manager": lambda: connect_unix("/run/hostler/manager/manager.sock"),
    "speak to Docker": lambda: connect_unix("/var/run/docker.sock"),
    "speak to another engine": lambda: connect_unix("/run/engine/../OTHER/engine.sock"),
    "speak to another engine through a link": lambda: link_out("../OTHER/engine.sock"),
    "speak to the manager through a link": lambda: link_out("/run/hostler/manager/manager.sock"),
    "find any other socket": other_sockets,
    "read another model": lambda: list(Path("/models/local/other").iterdir()),
    "read the host's users": lambda: Path("/proc/1/root/../../etc/shadow").read_bytes(),
    "write the root file system": lambda: write("/etc/passwd"),
    "write a program": lambda: write("/usr/bin/x"),
    "write its model": lambda: write("/models/local/tiny/config.json"),
    "write a device": lambda: write("/dev/mem"),
    "write how cores are handled": lambda: write("/proc/sys/kernel/core_pattern", "|/x"),
    "ask the kernel for a crash": lambda: write("/proc/sysrq-trigger", "c"),
    "write the cgroup's agent": lambda: write("/sys/fs/cgroup/release_agent", "/x"),
    "write its own limit": lambda: write("/sys/fs/cgroup/pids.max", "max"),
    "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "unmount its read-only weights": lambda: call("umount2", b"/models/local/tiny", 2),
    "mount anew for writing": lambda: call("mount", None, b"/models/local/tiny", None, 4096 | 32, None),
    "a user namespace": lambda: call("unshare", CLONE_NEWUSER),
    "a mount namespace": lambda: call("unshare", CLONE_NEWNS),
    "become root": lambda: os.setuid(0),
    "join root's group": lambda: os.setgroups([0]),
    "change its root": lambda: os.chroot("/tmp"),
    "make a device": lambda: os.mknod("/tmp/disk", stat.S_IFBLK | 0o600, os.makedev(254, 0)),
    "name the machine": lambda: socket.sethostname("x"),
    "a higher priority": lambda: os.nice(-5),
    "core files": raise_limit,
    "more than /tmp holds": lambda: fill("/tmp", 4 * GIB + 4096),
    "more than shared memory holds": lambda: fill("/dev/shm", GIB + 4096),
}


REFUSALS = frozenset({"EPERM", "EACCES", "EROFS", "ENOENT", "ENETUNREACH", "ENOSPC", "EAI", "EINVAL", "ENOTDIR"})
"""Errors that say no."""


def outcome(attempt: Callable[[], object]) -> str:
    """The name of the error, or what it says."""
    try:
        said = attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "EAI") if not isinstance(error, socket.gaierror) else "EAI"
    return said if isinstance(said, str) else "done"


def main() -> None:
    """Try what stands on stdin: all of it, the bomb, or the log."""
    orders = json.load(sys.stdin)
    if orders["do"] == "all":
        json.dump({name: outcome(attempt) for name, attempt in ATTEMPTS.items()}, sys.stdout)
    else:
        doing: dict[str, Callable[[], object]] = {
            "forks": fork_bomb,
            "print": lambda: printed(orders["lines"]),
            "fill": lambda: hoard("/run/engine", 24),
            "hoard": lambda: hoard("/cache", 160),
            "lock": lock,
            "swap": lambda: swap(orders["target"]),
        }
        json.dump(outcome(doing[orders["do"]]), sys.stdout)


if __name__ == "__main__":
    main()
