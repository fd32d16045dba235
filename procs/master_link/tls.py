"""Why a gRPC server refuses this node, or is none of the master's: gRPC itself says too little.

One handshake with the same credentials, after a failure that looks like one of TLS. Blocks.
"""

import socket
import ssl
from pathlib import Path

from procs.master_link.identity import Credentials
from shared.master_http import by_authority, tls_words
from shared.settings import split_address

TIMEOUT_S = 5.0
SIGNS = ("Socket closed", "handshake", "Hostname Verification")  # in gRPC's words for a failure


def looks_like_tls(text: str) -> bool:
    return any(sign in text for sign in SIGNS)


def why_refused(address: str, credentials: Credentials, lib: Path) -> str:
    """One clear sentence; empty: the handshake is well, or nobody is there."""
    host, port = split_address(address)
    try:
        context, name = by_authority(credentials.authority.decode())
        context.set_alpn_protocols(["h2"])
        if credentials.certificate:
            context.load_cert_chain(lib / "node.crt", lib / "node.key")
        with (
            socket.create_connection((host.strip("[]"), port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=name) as secure,
        ):
            if secure.recv(1):  # a server that takes us speaks first
                return ""
    except ssl.SSLEOFError:  # cut off in the middle: a refusal has a reason
        return ""
    except ssl.SSLError as err:
        return f"{address}: {tls_words(err)}"
    except OSError:
        return ""
    return (
        f"{address}: it closes the connection when this node shows its certificate: it is not"
        " this master's, or has expired by its clock"
    )
