"""An engine that was found running may have so much to do that it answers late. Seen to work, it is as well as before.

It serves, most likely, and an earlier manager knew that: to take it for one that loads would keep requests away, and to
end it after its time to answer would break all that it is working on.
"""

import asyncio
from pathlib import Path

from worker_manager.engines.canary import figures
from worker_manager.engines.readiness import RUNG_SECONDS, Readiness, open_client, probe

FOUND_SECONDS = 30.0
"""For its first answer; less than what an adopted engine has before it is given up."""


async def probe_found(socket: Path, served_name: str, *, may_sleep: bool, seconds: float = FOUND_SECONDS) -> Readiness:
    """One probe; `busy` where it did not answer in time and works. Never raises for what an engine does."""
    async with open_client(socket, RUNG_SECONDS) as client:
        before = await figures(client)
        try:
            async with asyncio.timeout(seconds):
                answer = await probe(socket, served_name, may_sleep=may_sleep)
        except TimeoutError:
            answer = Readiness(ready=False, reason=f"no answer within {seconds:g} s")
        if answer.ready or answer.asleep:
            return answer
        now = await figures(client)
    if before is not None and now is not None and now.is_ahead_of(before):
        return Readiness(ready=False, reason=answer.reason, busy=True)
    return answer
