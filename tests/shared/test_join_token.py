"""Join tokens, the digests in them, and the dates of certificates."""

import base64
import datetime
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

from procs.master import ca
from shared.certificate import certificates, digest_of, validity, with_digest
from shared.join_token import Token, base32, read_token, write_token
from tests.fakes.certificates import authority, party

DIGEST, SECRET = "a" * 52, "b" * 32
AUTHORITY = authority()


def test_a_token_is_written_as_it_is_read() -> None:
    token = Token(DIGEST, SECRET)
    assert write_token(token) == f"hm1.{DIGEST}.{SECRET}"
    assert read_token(write_token(token)) == token


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param(f"hm2.{DIGEST}.{SECRET}", id="version"),
        pytest.param(f"hm1.{DIGEST[1:]}.{SECRET}", id="short digest"),
        pytest.param(f"hm1.{DIGEST}.{SECRET[:25]}", id="under 128 bits"),
        pytest.param(f"hm1.{DIGEST.upper()}.{SECRET}", id="capitals"),
        pytest.param(f"hm1.{DIGEST}.{SECRET}.{SECRET}", id="a part too many"),
        pytest.param(f" hm1.{DIGEST}.{SECRET}", id="a space"),
    ],
)
def test_what_is_no_token_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a token hm1\.….…") as caught:
        read_token(text)
    assert SECRET[:20] not in str(caught.value)
    assert SECRET not in repr(Token(DIGEST, SECRET))


def test_the_digest_is_sha256_of_the_certificate_in_base32() -> None:
    der = AUTHORITY.certificate.public_bytes(serialization.Encoding.DER)
    expected = base64.b32encode(hashlib.sha256(der).digest()).decode().lower().strip("=")
    assert digest_of(AUTHORITY.pem) == expected == base32(hashlib.sha256(der).digest())
    assert len(expected) == 52


def test_a_bundle_is_taken_apart_and_only_what_matches_is_taken() -> None:
    other = authority().pem
    bundle = f"words before\n{other}\n\n{AUTHORITY.pem}words after"
    assert certificates(bundle) == [other, AUTHORITY.pem]
    assert with_digest(bundle, [digest_of(AUTHORITY.pem)]) == [AUTHORITY.pem]
    assert with_digest(bundle, [DIGEST]) == []
    assert certificates("-----BEGIN CERTIFICATE-----\n") == []


MOMENTS = st.datetimes(
    min_value=datetime.datetime(1950, 1, 1), max_value=datetime.datetime(2200, 1, 1)
).map(lambda moment: moment.replace(microsecond=0, tzinfo=datetime.UTC))


@given(start=MOMENTS, end=MOMENTS, serial=st.integers(1, 2**150))
def test_the_dates_are_read_as_the_reference_library_reads_them(
    start: datetime.datetime, end: datetime.datetime, serial: int
) -> None:
    start, end = sorted((start, end))
    name = x509.Name([])
    certificate = (
        x509.CertificateBuilder()
        .serial_number(serial)
        .subject_name(name)
        .issuer_name(AUTHORITY.certificate.subject)
        .not_valid_before(start)
        .not_valid_after(end)
        .public_key(AUTHORITY.key.public_key())
        .sign(AUTHORITY.key, hashes.SHA256())
    )
    read = validity(ca.certificate_pem(certificate))
    assert read == (start.timestamp(), end.timestamp())


def test_the_first_certificate_of_a_chain_counts() -> None:
    mine = party(AUTHORITY, "node-a")
    alone = validity(mine.certificate.decode())
    assert validity(mine.certificate.decode() + AUTHORITY.pem) == alone
    assert alone.until_unix_s - alone.from_unix_s == ca.CERTIFICATE_LIFE_S


@given(st.binary(max_size=200))
def test_what_is_no_certificate_is_a_value_error(raw: bytes) -> None:
    body = base64.encodebytes(raw).decode()
    with pytest.raises(ValueError):  # noqa: PT011  its kind is what callers know
        validity(f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
