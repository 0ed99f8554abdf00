"""The address a request comes from, as far as it can be believed. Pure.

`X-Forwarded-For` is written by whoever likes to: it is read only if the connection itself comes from a proxy that the
operator has named (HOSTLER_TRUSTED_PROXIES), and then from its end, past the proxies that were named, to the first
address that was not. What stands before that one is the client's own claim.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

UNKNOWN = "unknown"
SITE_BITS = 64
"""One customer gets at least so much of IPv6: limits that count single addresses there count nothing."""


class Addresses:
    """Finds the client behind a connection. Raises ValueError for a proxy that is neither address nor network."""

    def __init__(self, proxies: Iterable[str] = ()) -> None:
        self._proxies = [ip_network(proxy, strict=False) for proxy in proxies]

    def client(self, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The client's address as text, of IPv6 the /64 it lies in. `peer` is the connection's other end."""
        address = _parsed(peer or "")
        if address is not None and self._is_proxy(address):
            address = self._forwarded(address, headers)
        if address is None:
            return UNKNOWN
        if isinstance(address, IPv6Address):
            return str(IPv6Network((address, SITE_BITS), strict=False))
        return str(address)

    def _forwarded(
        self, peer: IPv4Address | IPv6Address, headers: Iterable[tuple[bytes, bytes]]
    ) -> IPv4Address | IPv6Address:
        said = b",".join(value for name, value in headers if name == b"x-forwarded-for").decode("latin-1")
        nearest = peer
        for part in reversed(said.split(",")):
            address = _parsed(part)
            if address is None:
                break
            nearest = address
            if not self._is_proxy(address):
                break
        return nearest

    def _is_proxy(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._proxies)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.strip().strip("[]"))
    except ValueError:
        return None
    # a socket that takes both shows IPv4 clients as ::ffff:192.0.2.1
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def is_network(text: str) -> bool:
    """Whether this is an address or a network (`10.0.0.0/8`)."""
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True
