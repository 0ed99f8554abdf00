"""What the settings say of people who sign in."""

import pytest

from gateway.sign_in import is_safe, roles_of
from gateway.types import Scope


def test_roles_are_read_from_one_line() -> None:
    line = " admins=admin, /ml team=inference+endpoints ,*=inference,cn=x,dc=y=metrics,"
    with pytest.raises(ValueError, match="'cn=x'"):
        roles_of(line)
    assert roles_of(" admins=admin, /ml team=inference + endpoints ,*=inference,a=b=metrics,") == {
        "admins": {Scope.ADMIN},
        "/ml team": {Scope.INFERENCE, Scope.ENDPOINTS},
        "*": {Scope.INFERENCE},
        "a=b": {Scope.METRICS},
    }
    assert roles_of("") == {}


@pytest.mark.parametrize("line", ["admins", "=admin", "admins=", "admins=root"])
def test_a_line_that_does_not_fit_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"is not a role|names a scope"):
        roles_of(line)


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://id.example/realms/x", True),
        ("http://127.0.0.1:8080", True),
        ("http://localhost", True),
        ("http://id.example", False),
        ("file:///etc/passwd", False),
        ("https://", False),
        ("", False),
    ],
)
def test_keys_come_by_https_or_from_this_machine(url: str, *, safe: bool) -> None:
    assert is_safe(url) == safe
