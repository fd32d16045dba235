"""Makes the node's key, once and for life, and prints a certificate request for it.

`python -m procs.master_link.request LIB`, a process of its own: the library that it needs would
cost master_link 9 MB for what happens every three weeks. The key is on disk before this ends.
"""

import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared.files import write_atomic


def make_key() -> bytes:
    """EC P-256: gRPC refuses Ed25519."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def request(key_pem: bytes) -> bytes:
    """PKCS#10 in PEM. The master gives the name; this proves the key."""
    key = serialization.load_pem_private_key(key_pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("it is not EC P-256")
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def main(argv: list[str]) -> int:
    path = Path(argv[1]) / "node.key"
    if not path.exists():
        write_atomic(path, make_key(), 0o600)
    try:
        sys.stdout.buffer.write(request(path.read_bytes()))
    except (ValueError, TypeError):  # what it says of a key is not for a log
        print(f"{path} is no key of this program's: set it aside to join anew", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
