"""The certificate that clients are shown, and its key: two PEM files, read again when they change.

A renewed pair is taken for new connections; one that cannot be used is logged, and the old one kept. Each handshake
asks for the pair of the moment, so nothing has to be replaced in the server that listens.
"""

import asyncio
import re
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import structlog

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at the files. A change is read at the second look that sees it: both files are written by then."""
LAST_PART = 0.1
"""Of its time: a certificate that has not been renewed by then is warned of."""

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
INTEGER, SEQUENCE, VERSION, UTC_TIME = 0x02, 0x30, 0xA0, 0x17
LONG_FORM = 0x80

Mark = tuple[int, ...]


class CertificateError(ValueError):
    """The files cannot be used; the message names the setting and says what to do."""


class Validity(NamedTuple):
    """From when until when a certificate holds."""

    begins: datetime
    ends: datetime

    def trouble(self, now: datetime) -> str:
        """What clients will not like about it, now or soon; empty where nothing."""
        if now >= self.ends:
            return f"the TLS certificate has expired on {self.ends:%Y-%m-%d %H:%M} UTC: renew it"
        if now < self.begins:
            return f"the TLS certificate is not valid before {self.begins:%Y-%m-%d %H:%M} UTC: is the clock right?"
        if self.ends - now < (self.ends - self.begins) * LAST_PART:
            return f"the TLS certificate expires on {self.ends:%Y-%m-%d %H:%M} UTC: renew it"
        return ""


class Certificate:
    """A certificate with its chain and key. Raises CertificateError where they cannot be used."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._last = self._tried = self._marks()
        self.validity, self._current = read(certificate, key)
        self.problem = ""
        """Why the files as they are now are not used."""
        self.context = server_context(certificate, key)
        """For the server that listens."""
        self.context.sni_callback = self._choose
        self._told = ""
        self._tell()

    def state(self) -> str:
        """`ok`, or what is wrong."""
        return self.problem or self.validity.trouble(datetime.now(UTC)) or "ok"

    def ends(self) -> float:
        """When it expires, Unix time."""
        return self.validity.ends.timestamp()

    async def watch(self) -> None:
        """Look after the files for as long as the server runs."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.look)  # a disk may take its time

    def look(self) -> None:
        """Take the files' new content once it stays the same from one look to the next."""
        marks = self._marks()
        settled, self._last = marks == self._last, marks
        if settled and marks != self._tried:
            self._tried = marks
            self._renew()
        self._tell()

    def _renew(self) -> None:
        try:
            self.validity, self._current = read(*self._files)
        except CertificateError as problem:
            self.problem = f"the changed TLS certificate is not used, the old one is kept: {problem}"
            log.error("the changed certificate is not used, the old one is kept", problem=str(problem))  # noqa: TRY400 - the sentence is the cause
            return
        self.problem = ""
        log.info("new certificate", ends=self.validity.ends.isoformat())

    def _tell(self) -> None:
        """Log what is wrong with its time, once."""
        trouble = self.validity.trouble(datetime.now(UTC))
        if trouble != self._told:
            self._told = trouble
            if trouble:
                log.warning(trouble, ends=self.validity.ends.isoformat())

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called by each handshake, whether the client names a server or not."""
        connection.context = self._current

    def _marks(self) -> tuple[Mark | None, ...]:
        """What changes with the files; a link's target counts."""
        return tuple(_mark(file) for file in self._files)


def _mark(file: Path) -> Mark | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def read(certificate: Path, key: Path) -> tuple[Validity, ssl.SSLContext]:
    """What the two files hold. Raises CertificateError."""
    found = CERTIFICATE.search(_text(certificate, "HOSTLER_TLS_CERTIFICATE"))
    if found is None:
        raise CertificateError(
            f"HOSTLER_TLS_CERTIFICATE: {certificate} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)"
        )
    secret = _text(key, "HOSTLER_TLS_KEY")
    if "PRIVATE KEY-----" not in secret:
        raise CertificateError(f"HOSTLER_TLS_KEY: {key} holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)")
    if "ENCRYPTED" in secret:
        raise CertificateError(
            f"HOSTLER_TLS_KEY: {key} is locked with a passphrase, which nobody could type at a start: write it without "
            f"one (openssl pkey -in {key} -out NEW.pem) and let file permissions guard it"
        )
    context = server_context(certificate, key)
    try:
        return validity(ssl.PEM_cert_to_DER_cert(found[0])), context
    except (ValueError, IndexError) as problem:
        raise CertificateError(f"HOSTLER_TLS_CERTIFICATE: {certificate} cannot be read: {problem}") from None


def _text(file: Path, setting: str) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        why = "is not there; in Docker it is a path in the container, /tls/NAME for a file in HOSTLER_TLS_FOLDER"
    except PermissionError:
        why = "may not be read by this user; in Docker that is 10001: chgrp 10001 and chmod 640 the file"
    except OSError as problem:
        why = f"cannot be read: {problem.strerror}"
    raise CertificateError(f"{setting}: {file} {why}")


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer with this pair. Raises CertificateError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except ssl.SSLError as problem:
        if "MISMATCH" in (problem.reason or ""):
            raise CertificateError(
                f"The key in {key} (HOSTLER_TLS_KEY) is not that of the first certificate in {certificate} "
                "(HOSTLER_TLS_CERTIFICATE): name files that belong together, the own certificate before its chain"
            ) from None
        raise CertificateError(
            f"{certificate} and {key} (HOSTLER_TLS_CERTIFICATE, HOSTLER_TLS_KEY) cannot be used: {problem}"
        ) from None
    except OSError as problem:
        raise CertificateError(f"HOSTLER_TLS_CERTIFICATE, HOSTLER_TLS_KEY: {problem}") from None
    return context


def _no_passphrase() -> str:
    """OpenSSL would ask for one on the terminal."""
    return ""


def validity(der: bytes) -> Validity:
    """The times in a certificate (RFC 5280, 4.1). Raises ValueError or IndexError where it is none.

    Python's ssl tells them of verified peers only.
    """
    at, _ = _inside(der, 0, SEQUENCE)  # Certificate
    at, _ = _inside(der, at, SEQUENCE)  # TBSCertificate
    if der[at] == VERSION:
        _, at = _inside(der, at, VERSION)
    for tag in (INTEGER, SEQUENCE, SEQUENCE):  # serial number, signature, issuer
        _, at = _inside(der, at, tag)
    at, _ = _inside(der, at, SEQUENCE)  # Validity
    _, second = _inside(der, at, der[at])
    return Validity(_time(der, at), _time(der, second))


def _inside(der: bytes, at: int, tag: int) -> tuple[int, int]:
    """Where a value's content begins and ends."""
    if der[at] != tag:
        raise ValueError(f"byte {at} is {der[at]:#x} where {tag:#x} belongs")
    length, begin = der[at + 1], at + 2
    if length >= LONG_FORM:
        count = length - LONG_FORM
        length, begin = int.from_bytes(der[begin : begin + count], "big"), begin + count
    return begin, begin + length


def _time(der: bytes, at: int) -> datetime:
    begin, end = _inside(der, at, der[at])
    text = der[begin:end].decode("ascii")
    if der[at] == UTC_TIME:  # two digits: 1950 to 2049
        text = ("19" if int(text[:2]) >= 50 else "20") + text  # noqa: PLR2004 - as RFC 5280 has it
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
