"""A client of the Docker Engine that speaks the version the Engine does.

The SDK would ask for the version in its constructor, and leave its connection open where that fails.
"""

import contextlib
import socket

from docker import APIClient

ANY_VERSION = "1.44"
"""Only to make a client; the question for the version itself carries none."""
UNIX = "unix://"


def connect(docker_host: str, seconds: int, *, connections: int = 1) -> APIClient:
    """A client whose every call is limited to `seconds`. Raises what the SDK raises, and `OSError`."""
    _knock(docker_host, seconds)
    asking = APIClient(base_url=docker_host, version=ANY_VERSION, timeout=seconds)
    with contextlib.closing(asking):
        version = str(asking.version(api_version=False)["ApiVersion"])
    return APIClient(base_url=docker_host, version=version, timeout=seconds, max_pool_size=connections)


def _knock(docker_host: str, seconds: int) -> None:
    """Connect once by hand: the SDK leaks the socket where nobody listens."""
    if docker_host.startswith(UNIX):
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(seconds)
            door.connect(docker_host.removeprefix(UNIX))
