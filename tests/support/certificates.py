"""Certificates for tests: an authority of their own, and server certificates for 127.0.0.1 and localhost."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


class Pair(NamedTuple):
    """The two files of a server certificate."""

    certificate: Path
    key: Path

    @property
    def settings(self) -> dict[str, str]:
        """What makes a gateway show it."""
        return {"HOSTLER_TLS_CERTIFICATE": str(self.certificate), "HOSTLER_TLS_KEY": str(self.key)}


class Authority:
    """Signs certificates; `trust` is a client's that trusts it alone."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the tests' authority")])
        now = datetime.now(UTC)
        self.certificate = (
            _builder(self._name, self._name, self._key.public_key(), now - timedelta(days=1), now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def trust(self) -> ssl.SSLContext:
        """A new client context."""
        return ssl.create_default_context(cadata=self.certificate.public_bytes(PEM).decode())

    def sign(self, folder: Path, *, begins: datetime | None = None, ends: datetime | None = None) -> Pair:
        """Write a new pair over whatever stands in the folder, each file in one step."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))])
        begins, ends = begins or now - timedelta(hours=1), ends or now + timedelta(days=1)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        made = (
            _builder(name, self._name, key.public_key(), begins, ends)
            .add_extension(names, critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pair = Pair(folder / "fullchain.pem", folder / "key.pem")
        write(pair.certificate, made.public_bytes(PEM))
        write(pair.key, private_pem(key))
        return pair


def private_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """A private key, locked where there is a passphrase."""
    lock = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, lock)


def write(path: Path, data: bytes) -> None:
    """Replace a file in one step, as certbot and others do."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.chmod(0o640)
    new.replace(path)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(begins).not_valid_after(ends)


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
