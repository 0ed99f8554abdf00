"""Where a request comes from: nobody can claim another address unless a named proxy says so."""

import pytest

from gateway.addresses import Addresses, is_network

PROXIES = ("10.0.0.0/8", "192.0.2.1", "fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", [b"198.51.100.1"], "203.0.113.9"),
        ("10.1.2.3", [b"198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", [b"6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", [b"6.6.6.6, 198.51.100.1, 192.0.2.1"], "198.51.100.1"),
        ("10.1.2.3", [b"6.6.6.6", b"198.51.100.1,10.9.9.9"], "198.51.100.1"),
        ("10.1.2.3", [b"10.7.7.7, 10.9.9.9"], "10.7.7.7"),
        ("10.1.2.3", [b"6.6.6.6, not an address"], "10.1.2.3"),
        ("10.1.2.3", [], "10.1.2.3"),
        ("::ffff:10.1.2.3", [b"198.51.100.1"], "198.51.100.1"),
        ("2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64"),
        ("fd00::1", [b"2001:db8:1:2:ffff::1"], "2001:db8:1:2::/64"),
        (None, [b"198.51.100.1"], "unknown"),
        ("", [], "unknown"),
    ],
)
def test_the_client_is_the_last_address_that_no_trusted_proxy_has(
    peer: str | None, forwarded: list[bytes], client: str
) -> None:
    headers = [(b"host", b"h"), *((b"x-forwarded-for", value) for value in forwarded)]
    assert Addresses(PROXIES).client(peer, headers) == client


def test_without_a_named_proxy_no_header_is_believed() -> None:
    assert Addresses().client("127.0.0.1", [(b"x-forwarded-for", b"6.6.6.6")]) == "127.0.0.1"


@pytest.mark.parametrize(("text", "fine"), [("10.0.0.0/8", True), ("::1", True), ("proxy.example", False), ("", False)])
def test_a_proxy_is_an_address_or_a_network(text: str, fine: bool) -> None:  # noqa: FBT001 - a table
    assert is_network(text) is fine
