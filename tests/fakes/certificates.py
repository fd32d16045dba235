"""Certificates of all kinds, good and bad, made with the reference library."""

import time
from dataclasses import dataclass
from pathlib import Path

from procs.master import ca
from procs.master.ca import Pair
from procs.master_link.request import make_key, request

DAY_S = 86400.0


@dataclass(frozen=True)
class Party:
    """Somebody with a certificate for `name`."""

    name: str
    key: bytes
    certificate: bytes

    def write(self, folder: Path) -> Path:
        """Key and certificate in one file."""
        path = folder / f"{self.name}.pem"
        path.write_bytes(self.key + self.certificate)
        return path


def authority() -> Pair:
    return ca.make_authority(time.time())


def party(signer: Pair, name: str, *, age_s: float = 0.0, key: bytes = b"") -> Party:
    """`age_s`: how long ago the certificate was made; `key`: PEM, else a new one."""
    key = key or make_key()
    asked = ca.read_request(request(key))
    certificate = ca.issue(signer, name, asked.key, time.time() - age_s)
    return Party(name, key, ca.certificate_pem(certificate).encode())


def of_master(data: Path) -> Pair:
    """The authority of a master with this data folder."""
    return ca.read_pair((data / "identity" / "ca.pem").read_bytes())
