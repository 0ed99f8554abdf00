"""Tasks that begin at once: a request whose body is there needs no turn of the loop before it is handled."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

if sys.version_info >= (3, 12):

    def begin(run: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        """A task that runs up to its first wait at once."""
        return asyncio.Task(run, loop=loop, eager_start=True)

else:

    def begin(run: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        """A task; Python 3.11 knows none that begins at once."""
        return loop.create_task(run)
