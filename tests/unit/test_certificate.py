"""Certificate files at a start and later: what is refused, in which words, and what becomes of a renewed pair."""

import os
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from gateway.certificate import Certificate, CertificateError, validity
from tests.support.certificates import PEM, Authority, Pair, private_pem, write
from tests.support.processes import python_module
from tests.support.users import without_rights

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def pair(authority: Authority, tmp_path: Path) -> Pair:
    return authority.sign(tmp_path)


def test_a_good_pair_is_taken_from_tls_1_2_on(pair: Pair) -> None:
    certificate = Certificate(*pair)
    assert certificate.state() == "ok"
    assert certificate.context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_what_cannot_be_used_is_refused_with_the_setting_and_what_to_do(pair: Pair, tmp_path: Path) -> None:
    strange, locked, rubbish = tmp_path / "strange.pem", tmp_path / "locked.pem", tmp_path / "rubbish.pem"
    write(strange, private_pem(ec.generate_private_key(ec.SECP256R1())))
    write(locked, private_pem(ec.generate_private_key(ec.SECP256R1()), b"open sesame"))
    write(rubbish, b"-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n")
    good = pair
    words: dict[str, Pair] = {
        r"HOSTLER_TLS_CERTIFICATE: .*missing.pem is not there.*HOSTLER_TLS_FOLDER": Pair(
            tmp_path / "missing.pem", good.key
        ),
        r"HOSTLER_TLS_KEY: .*missing.pem is not there": Pair(good.certificate, tmp_path / "missing.pem"),
        r"HOSTLER_TLS_CERTIFICATE: .* cannot be read": Pair(tmp_path, good.key),
        r"holds no certificate in PEM form": Pair(good.key, good.key),
        r"holds no private key in PEM form": Pair(good.certificate, good.certificate),
        r"name files that belong together": Pair(good.certificate, strange),
        r"locked with a passphrase.*openssl pkey": Pair(good.certificate, locked),
        r"rubbish.pem .*cannot be used": Pair(rubbish, good.key),
    }
    for said, files in words.items():
        with pytest.raises(CertificateError, match=said):
            Certificate(*files)


def test_files_that_the_gateway_may_not_read_are_refused_with_what_to_do(pair: Pair) -> None:
    pair.key.chmod(0)
    with without_rights(), pytest.raises(CertificateError, match=r"may not be read by this user.*chmod 640"):
        Certificate(*pair)


def test_the_gateway_ends_at_its_start_with_one_sentence(pair: Pair) -> None:
    pair.key.unlink()
    env = dict(os.environ, HOSTLER_ADMIN_KEY="0123456789abcdef", **pair.settings)
    done = subprocess.run(python_module("gateway"), env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("hostler gateway: HOSTLER_TLS_KEY: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("begins", "ends", "said"),
    [
        (-90, -1, "has expired"),
        (1, 90, "not valid before"),
        (-89, 1, "expires on"),
        (-1, 89, "ok"),
    ],
)
def test_a_certificate_past_its_time_serves_and_says_so(
    authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str], begins: int, ends: int, said: str
) -> None:
    now = datetime.now(UTC)
    certificate = Certificate(*authority.sign(tmp_path, begins=now + begins * DAY, ends=now + ends * DAY))
    assert said in certificate.state()
    certificate.look()
    assert capsys.readouterr().out.count(said) == (0 if said == "ok" else 1), "it is logged once"


def settle(certificate: Certificate) -> None:
    """As many looks as a change takes."""
    certificate.look()
    certificate.look()


def test_a_renewed_pair_is_taken_when_both_files_are_written(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    certificate = Certificate(*pair)
    before = certificate.ends()
    (tmp_path / "next").mkdir()
    later = authority.sign(tmp_path / "next", ends=datetime.now(UTC) + 2 * DAY)
    write(pair.certificate, later.certificate.read_bytes())
    settle(certificate)
    assert certificate.ends() == before
    assert "the old one is kept" in certificate.state()
    write(pair.key, later.key.read_bytes())
    certificate.look()
    assert certificate.ends() == before, "a change is read once it has settled"
    certificate.look()
    assert certificate.ends() > before
    assert certificate.state() == "ok"


def test_files_that_vanish_or_break_leave_the_old_pair_in_use(pair: Pair) -> None:
    certificate = Certificate(*pair)
    key = pair.key.read_bytes()
    for harm in (pair.key.unlink, lambda: write(pair.key, b"broken"), lambda: write(pair.key, b"")):
        harm()
        settle(certificate)
        assert "the old one is kept" in certificate.state()
    write(pair.key, key)
    settle(certificate)
    assert certificate.state() == "ok"


@given(
    begins=st.datetimes(datetime(1950, 1, 2), datetime(9998, 1, 1)),  # noqa: DTZ001 - as the builder takes them
    days=st.integers(0, 300),
    serial=st.integers(1, 2**159 - 1),
    name=st.text("abc", min_size=1, max_size=60),
)
def test_the_times_are_read_out_of_any_certificate(begins: datetime, days: int, serial: int, name: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begins = begins.replace(microsecond=0, tzinfo=UTC)
    builder = x509.CertificateBuilder().subject_name(named).issuer_name(named).public_key(key.public_key())
    made = builder.serial_number(serial).not_valid_before(begins).not_valid_after(begins + days * DAY)
    der = ssl.PEM_cert_to_DER_cert(made.sign(key, hashes.SHA256()).public_bytes(PEM).decode())
    assert validity(der) == (begins, begins + days * DAY)
    with pytest.raises((ValueError, IndexError)):
        validity(der[:30])
