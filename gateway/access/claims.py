"""What a person's sign-in token says, as rights here. Pure.

A token is a JWT (RFC 7519) whose signature was verified before. Which claim names a person's roles, and which rights
each role has, are settings.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from gateway.sign_in import EVERYBODY, Roles
from gateway.types import PERSON, Principal

PLAIN_SUBJECT = re.compile(r"[\x21-\x7e]{1,80}")
LONGEST_NAME = 128
ALL_ENDPOINTS = frozenset({"*"})


def principal_of(claims: Mapping[str, Any], claim: str, roles: Roles) -> Principal:
    """Who a verified token stands for. Its scopes are those of all its roles together, and may be none."""
    scopes = roles.get(EVERYBODY, frozenset())
    for role in _texts(_at(claims, claim)):
        scopes |= roles.get(role, frozenset()) if role != EVERYBODY else frozenset()
    subject = str(claims["sub"])
    names = (claims.get(field) for field in ("preferred_username", "email", "name"))
    name = next((name for name in names if isinstance(name, str) and name), subject)
    return Principal(PERSON + _short(subject), name[:LONGEST_NAME], scopes, ALL_ENDPOINTS, float(claims["exp"]))


def _at(claims: Mapping[str, Any], path: str) -> Any:
    """The claim of this name, which may hold dots; else what lies at the end of the path (`realm_access.roles`)."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for step in path.split("."):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _texts(value: Any) -> list[str]:
    """Roles as issuers write them: a list of texts, or one text with spaces between (`scope`)."""
    if isinstance(value, str):
        return value.split()
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _short(subject: str) -> str:
    """A subject that fits into a log line and a table; of one that does not, a hash."""
    return subject if PLAIN_SUBJECT.fullmatch(subject) else hashlib.sha256(subject.encode()).hexdigest()[:32]
