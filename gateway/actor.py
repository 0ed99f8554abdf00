"""Who is behind what is being done right now: set where a credential was verified, read where a change is written."""

from contextvars import ContextVar

import msgspec


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who does something, and by which request."""

    who: str
    """The key's id; `gateway`, `manager` or `nobody` (not signed in) where there is no key."""
    subject: str = ""
    """The key's name, or the person's."""
    address: str = ""
    """Of the client."""
    request_id: str = ""


GATEWAY = Actor(who="gateway")
"""What the gateway does of itself."""
MANAGER = Actor(who="manager")
NOBODY = "nobody"

acting: ContextVar[Actor] = ContextVar("acting", default=GATEWAY)
"""The actor of this task and of those it starts."""
