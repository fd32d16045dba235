"""How a client proves who it is to a master over https, and the master to it: one admin token.

`hma1.<digest>.<secret>`: the digest names the master's authority, as in a join token; the secret
is sent to who was proven to be the master, and to nobody else.
"""

import json
import os
import ssl
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from shared.certificate import with_digest
from shared.join_token import Token, read_token
from shared.master_http import (
    DISCOVERY,
    Check,
    MasterHttpError,
    by_authority,
    by_trust_store,
    get,
    get_unverified,
)

VERSION = "hma1"
FILE_VARIABLE = "HIVEMIND_ADMIN_TOKEN_FILE"


class TrustError(Exception):
    """The master or this client is not proven; the text says what to do."""


class _Checked(HTTPAdapter):
    """Proves the other side by `check` alone."""

    def __init__(self, check: Check) -> None:
        self._check = check
        super().__init__()

    def init_poolmanager(self, *args: Any, **more: Any) -> None:  # noqa: ANN401
        context, name = self._check
        super().init_poolmanager(
            *args, **more, ssl_context=context, server_hostname=name, assert_hostname=name
        )

    def cert_verify(self, conn: Any, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """The context's own roots, and no bundle beside them."""
        conn.cert_reqs = ssl.CERT_REQUIRED


def authenticate(session: requests.Session, url: str, path: Path) -> None:
    """From here on each call of the session shows the token in this file, to the proven master."""
    try:
        text = path.read_text().strip()
        token = read_token(text, VERSION)
    except (OSError, ValueError) as err:
        raise TrustError(
            f"{url} wants the master's admin token, and {path} has none:"
            f" copy identity/admin.token of its data folder, and name it by {FILE_VARIABLE}"
        ) from err
    session.mount("https://", _Checked(_check(url, token)))
    session.headers["Authorization"] = f"Bearer {text}"
    session.trust_env = False  # else a netrc would replace the token


def token_file() -> Path:
    """Named by the variable, else that of a master of this user's on this machine."""
    named = os.environ.get(FILE_VARIABLE)
    if named:
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "hivemind-master" / "identity" / "admin.token"


def _check(url: str, token: Token) -> Check:
    """The token's authority, or a public front before a master that has it."""
    try:
        bundle = json.loads(get_unverified(url, DISCOVERY).body).get("certificate_authority", "")
        found = with_digest(bundle, [token.digest])
        if not found:
            raise TrustError(f"{url} is not the master that the admin token is for")
        return by_authority(found[0]) if _is_own(url, found[0]) else by_trust_store(url)
    except MasterHttpError as err:
        raise TrustError(str(err)) from err
    except (ValueError, AttributeError, TypeError) as err:
        raise TrustError(f"{url} is no HiveMind master") from err


def _is_own(url: str, authority: str) -> bool:
    """Whether it shows a certificate of its own authority; either way it is proven."""
    return get(url, DISCOVERY, authority).by_authority
