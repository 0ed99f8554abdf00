"""Sign-in tokens, verified against a real issuer over HTTP."""

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.access.issuer_keys import FRESH_SECONDS, OLD_SECONDS, PAUSE_SECONDS, STALE_SECONDS, IssuerKeys
from gateway.access.people import KNOWN_SECONDS, LEEWAY_SECONDS, People
from gateway.errors import IssuerUnavailable, Unauthorized
from gateway.sign_in import roles_of
from gateway.types import Scope
from tests.support.issuer import AUDIENCE, Issuer

ROLES = roles_of("admins=admin,*=inference")


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


@pytest.fixture
async def people(issuer: Issuer, clock: Clock) -> AsyncIterator[People]:
    made = People(IssuerKeys(issuer.url, clock), issuer.url, AUDIENCE, "groups", ROLES)
    yield made
    await made.close()


async def scopes(people: People, token: str) -> set[Scope]:
    await people.verify(token.encode())
    who = people.known(token.encode())
    assert who is not None
    return set(who.scopes)


async def why_not(people: People, token: str) -> str:
    with pytest.raises(Unauthorized) as caught:
        await people.verify(token.encode())
    assert people.known(token.encode()) is None
    assert not token or token not in caught.value.message
    return caught.value.message


async def test_a_token_of_the_issuer_opens_with_the_scopes_of_its_roles(people: People, issuer: Issuer) -> None:
    issuer.add("rsa", kind="RSA")
    assert await scopes(people, issuer.token(groups=["admins"])) == {Scope.ADMIN, Scope.INFERENCE}
    assert await scopes(people, issuer.token("rsa")) == {Scope.INFERENCE}
    assert await scopes(people, issuer.token("rsa", algorithm="PS256")) == {Scope.INFERENCE}
    assert await scopes(people, issuer.token(aud=["other", AUDIENCE])) == {Scope.INFERENCE}
    assert issuer.fetches == 1


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://elsewhere.example"},
        {"iss": None},
        {"aud": "another program"},
        {"aud": None},
        {"exp": 1},
        {"exp": None},
        {"exp": "soon"},
        {"exp": 1e400},
        {"nbf": 4_000_000_000},
        {"sub": None},
        {"sub": 7},
    ],
    ids=str,
)
async def test_a_token_with_a_claim_that_does_not_fit_is_refused(
    people: People, issuer: Issuer, claims: dict[str, Any]
) -> None:
    assert "is not accepted" in await why_not(people, issuer.token(**claims))


async def test_the_issuers_clock_may_differ_by_half_a_minute(people: People, issuer: Issuer) -> None:
    now = time.time()
    fine: list[dict[str, Any]] = [{"exp": now - 1}, {"nbf": now + 25}, {"iat": now + 25}]
    for claims in fine:
        assert await scopes(people, issuer.token(**claims)) == {Scope.INFERENCE}
    wrong: list[dict[str, Any]] = [{"exp": now - 31}, {"nbf": now + 10_000}, {"iat": now + 10_000}]
    for claims in wrong:
        await why_not(people, issuer.token(**claims))


def unsigned(header: dict[str, Any], payload: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


async def test_no_token_opens_that_the_issuer_has_not_signed(people: People, issuer: Issuer) -> None:
    good = issuer.token()
    head, payload, signature = good.split(".")
    claims = jwt.decode(good, options={"verify_signature": False})
    public = issuer.keys["first"].public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    header = {"alg": "HS256", "kid": "first", "typ": "JWT"}
    signed = unsigned(header, claims).rpartition(".")[0]
    forged = f"{signed}.{base64.urlsafe_b64encode(hmac.sign(signed.encode(), pem)).rstrip(b'=').decode()}"
    stranger = ec.generate_private_key(ec.SECP256R1())
    jwk = {**jwt.algorithms.ECAlgorithm.to_jwk(stranger.public_key(), as_dict=True)}
    brought_along = jwt.encode(claims, stranger, "ES256", headers={"kid": "first", "jwk": jwk, "jku": issuer.url})
    other_payload = (
        base64.urlsafe_b64encode(json.dumps({**claims, "groups": ["admins"]}).encode()).rstrip(b"=").decode()
    )
    for token in (
        forged,
        unsigned({"alg": "none", "kid": "first"}, claims),
        unsigned({"kid": "first"}, claims),
        unsigned({"alg": ["ES256"], "kid": "first"}, claims),
        unsigned({"alg": "ES256", "kid": ["first"]}, claims),
        issuer.token(private=stranger),
        brought_along,
        f"{head}.{other_payload}.{signature}",
        f"{head}.{payload}.",
        f"{head}.{payload}.{signature[:-4]}AAAA",
        good + "." + signature,
        "e" * 20_000 + "..",
        "",
    ):
        await why_not(people, token)
    assert await scopes(people, good) == {Scope.INFERENCE}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=30), min_size=1, max_size=4).map(b".".join))
async def test_whatever_is_sent_is_refused_and_nothing_else(people: People, token: bytes) -> None:
    with pytest.raises(Unauthorized):
        await people.verify(token)


async def test_a_deeply_nested_header_is_refused(people: People) -> None:
    deep = base64.urlsafe_b64encode(b"[" * 9_000).rstrip(b"=").decode()
    await why_not(people, f"{deep}.e30.e30")


async def test_keys_that_do_not_sign_are_left_out(people: People, issuer: Issuer) -> None:
    secret = base64.urlsafe_b64encode(b"x" * 32).rstrip(b"=").decode()
    issuer.extra_keys = [{"kty": "oct", "kid": "shared", "k": secret}, {"kty": "RSA"}, {"kid": "first", "use": "enc"}]
    await why_not(people, jwt.encode({"sub": "x"}, b"x" * 32, "HS256", headers={"kid": "shared"}))
    assert await scopes(people, issuer.token()) == {Scope.INFERENCE}


async def test_a_new_key_of_the_issuer_is_fetched_and_unknown_ones_not_more_often_than_that(
    people: People, issuer: Issuer, clock: Clock
) -> None:
    assert await scopes(people, issuer.token()) == {Scope.INFERENCE}
    stranger = ec.generate_private_key(ec.SECP256R1())
    for number in range(50):
        assert "shows no key" in await why_not(people, issuer.token(f"unknown-{number}", private=stranger))
    assert issuer.fetches == 1
    issuer.add("second")
    clock.now += PAUSE_SECONDS
    assert await scopes(people, issuer.token("second")) == {Scope.INFERENCE}
    assert await scopes(people, issuer.token("first", sub="u-2")) == {Scope.INFERENCE}
    assert issuer.fetches == 2


async def test_a_withdrawn_key_opens_for_some_minutes_and_no_longer(
    people: People, issuer: Issuer, clock: Clock
) -> None:
    token = issuer.token()
    assert await scopes(people, token)
    old = issuer.keys.pop("first")
    issuer.add("second")
    clock.now += FRESH_SECONDS + 1
    assert await scopes(people, issuer.token(private=old, sub="u-2"))  # and keys are fetched behind it
    assert people._keys._later is not None
    await people._keys._later
    assert "shows no key" in await why_not(people, issuer.token(private=old, sub="u-3"))


async def test_after_a_quiet_time_keys_are_fetched_before_the_first_token_is_believed(
    people: People, issuer: Issuer, clock: Clock
) -> None:
    assert await scopes(people, issuer.token())
    old = issuer.keys.pop("first")
    clock.now += OLD_SECONDS + 1
    assert "shows no key" in await why_not(people, issuer.token(private=old, sub="u-2"))


async def test_while_the_issuer_is_away_its_keys_serve_for_a_day(people: People, issuer: Issuer, clock: Clock) -> None:
    assert await scopes(people, issuer.token())
    issuer.status = 500
    clock.now += STALE_SECONDS - 1
    assert await scopes(people, issuer.token(sub="u-2"))
    with pytest.raises(IssuerUnavailable, match="answers 500") as caught:
        await people.verify(issuer.token("new", private=issuer.keys["first"]).encode())
    assert (b"retry-after", b"10") in caught.value.headers()
    clock.now += 2
    with pytest.raises(IssuerUnavailable):
        await people.verify(issuer.token(sub="u-3").encode())
    issuer.status = 200
    clock.now += PAUSE_SECONDS
    assert await scopes(people, issuer.token(sub="u-3"))


async def test_an_issuer_that_was_never_reached_is_no_refusal(clock: Clock) -> None:
    with Issuer() as gone:
        token, url = gone.token(), gone.url
    people = People(IssuerKeys(url, clock), url, AUDIENCE, "groups", ROLES)
    with pytest.raises(IssuerUnavailable, match="ConnectError"):
        await people.verify(token.encode())
    await people.close()


async def test_an_issuer_of_another_name_or_with_keys_elsewhere_is_not_believed(people: People, issuer: Issuer) -> None:
    issuer.says_issuer = "https://other.example"
    with pytest.raises(IssuerUnavailable, match="HOSTLER_OIDC_ISSUER"):
        await people.verify(issuer.token().encode())
    assert issuer.fetches == 0


async def test_a_verified_token_is_known_for_some_minutes_and_not_past_its_end(issuer: Issuer) -> None:
    clock = Clock()
    people = People(IssuerKeys(issuer.url), issuer.url, AUDIENCE, "groups", ROLES, clock)
    token = issuer.token().encode()
    ends = jwt.decode(token, options={"verify_signature": False})["exp"]
    clock.now = ends - 600.0
    await people.verify(token)
    clock.now += KNOWN_SECONDS - 1
    assert people.known(token) is not None
    clock.now += 1
    assert people.known(token) is None
    await people.verify(token)
    clock.now = ends + LEEWAY_SECONDS
    assert people.known(token) is None
    await people.close()
