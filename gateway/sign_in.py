"""What the settings say of people who sign in: the scopes of each role, and where an issuer may be. Pure."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from gateway.types import Scope

EVERYBODY = "*"
"""The role of whoever is signed in."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

Roles = Mapping[str, frozenset[Scope]]


def roles_of(text: str) -> dict[str, frozenset[Scope]]:
    """Read `admins=admin, ml-team=inference+endpoints, *=inference`. Raises ValueError with what does not fit."""
    roles: dict[str, frozenset[Scope]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        role, sign, scopes = (word.strip() for word in part.rpartition("="))
        if not role or not sign:
            raise ValueError(f"{part!r} is not a role, '=' and scopes")
        try:
            roles[role] = frozenset(Scope(scope.strip()) for scope in scopes.split("+"))
        except ValueError:
            raise ValueError(f"{part!r} names a scope that is none of {', '.join(Scope)}") from None
    return roles


def is_safe(url: str) -> bool:
    """Whether nobody on the way can change what comes from there: https, or this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    host = parts.hostname or ""
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK))
