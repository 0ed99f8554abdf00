"""What a person's token says, as rights here."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.claims import principal_of
from gateway.sign_in import Roles
from gateway.types import Scope

ROLES = {"admins": frozenset({Scope.ADMIN}), "team": frozenset({Scope.INFERENCE, Scope.ENDPOINTS})}


def scopes(claims: dict[str, Any], claim: str = "groups", roles: Roles = ROLES) -> set[Scope]:
    return set(principal_of({"sub": "u-1", "exp": 10, **claims}, claim, roles).scopes)


def test_scopes_are_those_of_all_roles_together_and_may_be_none() -> None:
    assert scopes({"groups": ["team", "admins", "others"]}) == {Scope.INFERENCE, Scope.ENDPOINTS, Scope.ADMIN}
    assert scopes({"groups": ["others"]}) == set()
    assert scopes({}, roles=ROLES | {"*": frozenset({Scope.METRICS})}) == {Scope.METRICS}


def test_nobody_gets_everybodys_role_by_its_name_alone() -> None:
    assert scopes({"groups": ["*"]}) == set()


@pytest.mark.parametrize(
    ("claims", "claim"),
    [
        ({"realm_access": {"roles": ["admins"]}}, "realm_access.roles"),
        ({"https://example.org/roles": ["admins"]}, "https://example.org/roles"),
        ({"scope": "openid admins"}, "scope"),
        ({"role": "admins"}, "role"),
    ],
)
def test_roles_are_found_where_issuers_write_them(claims: dict[str, Any], claim: str) -> None:
    assert scopes(claims, claim) == {Scope.ADMIN}


def test_a_person_is_known_by_the_subject_and_shown_by_a_name() -> None:
    claims = {"sub": "u-1", "exp": 10.5, "email": "a@b.c", "name": "A"}
    who = principal_of(claims, "groups", ROLES)
    assert (who.key_id, who.name, who.expires_at, who.may_use("any")) == ("person:u-1", "a@b.c", 10.5, True)
    assert principal_of({"sub": "u-1", "exp": 1}, "groups", {}).name == "u-1"
    odd = principal_of({"sub": "a b\n" * 100, "exp": 1}, "groups", {})
    assert len(odd.key_id) == len("person:") + 32
    assert len(odd.name) <= 128


SIMPLE = st.none() | st.integers() | st.text(max_size=5)
JSON = st.recursive(
    SIMPLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(["groups", "a", "name", "email"]), JSON),
    st.sampled_from(["groups", "a.b", "", "."]),
)
def test_whatever_a_token_says_it_gives_no_scope_that_is_not_configured(claims: dict[str, Any], claim: str) -> None:
    assert scopes(claims, claim) <= {Scope.ADMIN, Scope.INFERENCE, Scope.ENDPOINTS}
