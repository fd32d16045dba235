"""The master's own certificate authority: keys, certificates, requests. Pure, but for randomness.

EC P-256, since gRPC refuses Ed25519. Nothing here decides who gets a certificate.
"""

import datetime
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE_S = 10 * 365 * 86400.0
CERTIFICATE_LIFE_S = 30 * 86400.0  # the contract's most, with what lies before its first second
BACKDATED_S = 3600.0  # for a node whose clock is behind
RENEW_AT = 2 / 3  # of a certificate's life
_UNREADABLE = (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion)


class BadRequest(ValueError):
    """A certificate request that no certificate is given for; the text says why."""


@dataclass(frozen=True)
class Request:
    """What of a certificate request counts: its key, proven to be the sender's."""

    key: ec.EllipticCurvePublicKey
    key_sha256: str


@dataclass(frozen=True)
class Pair:
    """A key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        return certificate_pem(self.certificate)


def make_authority(now_unix_s: float) -> Pair:
    key = make_key()
    public = key.public_key()
    start_s = now_unix_s - BACKDATED_S
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    # Two authorities of one master differ in name: a chain then has one way only to be built.
    name = _name(f"HiveMind master {identifier.digest.hex()[:12]}")
    certificate = (
        _dated(start_s, start_s + AUTHORITY_LIFE_S)
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return Pair(key, certificate)


def issue(
    authority: Pair, name: str, key: ec.EllipticCurvePublicKey, now_unix_s: float
) -> x509.Certificate:
    """A certificate for client and server use, with `name` as common and DNS name."""
    start_s = now_unix_s - BACKDATED_S
    signer = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return (
        _dated(start_s, start_s + CERTIFICATE_LIFE_S)
        .subject_name(_name(name))
        .issuer_name(authority.certificate.subject)
        .public_key(key)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
            ),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer.value),
            critical=False,
        )
        .sign(authority.key, hashes.SHA256())
    )


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def read_request(pem: bytes) -> Request:
    """A PKCS#10 request whose sender has the key; BadRequest otherwise."""
    try:
        request = x509.load_pem_x509_csr(pem)
        signed, key = request.is_signature_valid, request.public_key()
    except _UNREADABLE as err:
        raise BadRequest("certificate_request: it is no PKCS#10 request in PEM") from err
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadRequest("certificate_request: its key must be EC P-256")
    if not signed:
        raise BadRequest("certificate_request: it is not signed by its own key")
    return Request(key, key_sha256(key))


def key_sha256(key: ec.EllipticCurvePublicKey) -> str:
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, info)).hexdigest()


def key_sha256_of(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    return key_sha256(key) if isinstance(key, ec.EllipticCurvePublicKey) else ""


def certificate_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain
    ).decode()


def read_pair(pem: bytes) -> Pair:
    """A key and the certificate after it; ValueError: they are not there."""
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("its key is not EC P-256")
    return Pair(key, x509.load_pem_x509_certificate(pem))


def renew_at_unix_s(certificate: x509.Certificate) -> float:
    start_s = certificate.not_valid_before_utc.timestamp()
    return start_s + RENEW_AT * (certificate.not_valid_after_utc.timestamp() - start_s)


def _dated(start_unix_s: float, end_unix_s: float) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(_utc(start_unix_s))
        .not_valid_after(_utc(end_unix_s))
    )


def _utc(unix_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix_s), datetime.UTC)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
