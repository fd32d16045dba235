"""The discovery document: believed only where it is proven, and every doubt is one clear line."""

import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from procs.master_link.discovery import DocumentError, discover
from shared import master_http
from shared.certificate import digest_of
from shared.join_token import Token
from shared.master_http import MasterHttpError, UntrustedError
from tests.fakes.certificates import DAY_S, authority, party
from tests.fakes.https_front import Front, front

SECRET = "a" * 32
OURS, OTHERS = authority(), authority()
MASTER = party(OURS, "hivemind-master")
TOKEN = Token(digest_of(OURS.pem), SECRET)


def document(**more: Any) -> dict[str, Any]:
    return {
        "grpc": "192.0.2.1:50051",
        "join": "192.0.2.1:50052",
        "certificate_authority": OURS.pem,
        **more,
    }


def test_a_token_vouches_for_the_authority_and_the_second_copy_is_used(tmp_path: Path) -> None:
    def told(number: int) -> dict[str, Any]:
        return document(grpc=f"192.0.2.{number}:1", certificate_authority=OURS.pem + OTHERS.pem)

    with front(MASTER, tmp_path, told) as master:
        found = discover(master.url, "", TOKEN)
        assert (found.grpc, found.join) == ("192.0.2.1:1", "192.0.2.1:50052")
        assert found.authority == OURS.pem + OTHERS.pem


def test_the_stored_authority_is_enough_and_is_not_changed_here(tmp_path: Path) -> None:
    told = document(certificate_authority=OURS.pem + OTHERS.pem)
    with front(MASTER, tmp_path, lambda _: told) as master:
        assert discover(master.url, OURS.pem, None).authority == OURS.pem
        assert master.requests == 1
        stale = Token(digest_of(OTHERS.pem), SECRET)  # of before a change of the authority
        assert discover(master.url, OURS.pem, stale).authority == OURS.pem


def test_a_token_of_another_master_is_the_owners_newer_word(tmp_path: Path) -> None:
    with front(MASTER, tmp_path, lambda _: document()) as master:
        assert discover(master.url, OTHERS.pem, TOKEN).authority == OURS.pem


@pytest.fixture
def public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A front with a certificate that the machine's trust store vouches for."""
    vouching = authority()
    (tmp_path / "store.pem").write_text(vouching.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "store.pem"))
    return party(vouching, "localhost")


def at_name(url: str) -> str:
    return url.replace("127.0.0.1", "localhost")


def test_behind_a_public_front_the_trust_store_verifies(tmp_path: Path, public: Any) -> None:
    with front(public, tmp_path, lambda _: document()) as master:
        url = at_name(master.url)
        assert discover(url, "", None).authority == OURS.pem  # first use
        assert discover(url, "", TOKEN).authority == OURS.pem
        assert discover(url, OURS.pem, None).authority == OURS.pem


def test_a_front_adds_no_authority_to_the_one_that_the_token_names(
    tmp_path: Path, public: Any
) -> None:
    told = document(certificate_authority=OURS.pem + OTHERS.pem)
    with front(public, tmp_path, lambda _: told) as master:
        assert discover(at_name(master.url), "", TOKEN).authority == OURS.pem


def test_a_front_that_names_another_authority_is_not_believed(tmp_path: Path, public: Any) -> None:
    with (
        front(public, tmp_path, lambda _: document()) as master,
        pytest.raises(UntrustedError, match=f"{digest_of(OURS.pem)}, than the one that this node"),
    ):
        discover(at_name(master.url), OTHERS.pem, None)


def test_the_trust_store_needs_the_urls_own_name(tmp_path: Path, public: Any) -> None:
    with (
        front(public, tmp_path, lambda _: document()) as master,
        pytest.raises(UntrustedError, match="for another name: this is not the master"),
    ):
        discover(master.url, "", None)


# ------------------------------------------------------------------ who is not believed


def _another_name(told: Front, folder: Path) -> None:
    told.context.load_cert_chain(party(OURS, "node-of-another").write(folder))


def _another_authority(told: Front, folder: Path) -> None:
    told.context.load_cert_chain(party(OTHERS, "hivemind-master").write(folder))


def _old_tls(told: Front, folder: Path) -> None:
    told.context.maximum_version = ssl.TLSVersion.TLSv1_2


def _expired(told: Front, folder: Path) -> None:
    told.context.load_cert_chain(party(OURS, "hivemind-master", age_s=40 * DAY_S).write(folder))


def _clock_behind(told: Front, folder: Path) -> None:
    """This machine's: the master's certificate is of its future."""
    told.context.load_cert_chain(party(OURS, "hivemind-master", age_s=-9 * DAY_S).write(folder))
    told.clock_ahead_s = 9 * DAY_S


def _clock_ahead(told: Front, folder: Path) -> None:
    _expired(told, folder)
    told.clock_ahead_s = -40 * DAY_S


def _another_document(told: Front, folder: Path) -> None:
    told.document = lambda number: document(
        certificate_authority=OURS.pem if number == 0 else OTHERS.pem
    )


def _no_authority(told: Front, folder: Path) -> None:
    told.document = lambda _: {"grpc": "192.0.2.1:1"}


REFUSED = [
    pytest.param(_another_name, "for another name: this is not the master", id="name"),
    pytest.param(_another_authority, "not of an authority that this machine", id="authority"),
    pytest.param(_old_tls, "it does not speak TLS 1.3", id="TLS 1.2"),
    pytest.param(_expired, "its certificate has expired", id="expired"),
    pytest.param(_clock_behind, "clock is 9 days behind the master's: set it", id="clock behind"),
    pytest.param(_clock_ahead, "clock is 40 days ahead of the master's: set it", id="clock ahead"),
    pytest.param(_another_document, "another authority", id="another document"),
    pytest.param(_no_authority, "another authority|authority is none", id="no authority"),
]


@pytest.mark.parametrize(("spoil", "words"), REFUSED)
def test_by_token_it_is_refused(tmp_path: Path, spoil: Any, words: str) -> None:
    with front(MASTER, tmp_path, lambda _: document()) as master:
        spoil(master, tmp_path)
        with pytest.raises(UntrustedError, match=words) as caught:
            discover(master.url, "", TOKEN)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("spoil", "words"), [r for r in REFUSED if r.id != "another document"])
def test_by_the_stored_authority_it_is_refused(tmp_path: Path, spoil: Any, words: str) -> None:
    with front(MASTER, tmp_path, lambda _: document()) as master:
        spoil(master, tmp_path)
        with pytest.raises(UntrustedError, match=words):
            discover(master.url, OURS.pem, None)


def test_a_master_that_was_set_up_anew_is_told_apart(tmp_path: Path) -> None:
    with (
        front(MASTER, tmp_path, lambda _: document()) as master,
        pytest.raises(UntrustedError, match=f"this node has joined {digest_of(OTHERS.pem)}: a"),
    ):
        discover(master.url, OTHERS.pem, None)


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with front(MASTER, tmp_path, lambda _: document()) as master:
        master.status = 302
        with pytest.raises(MasterHttpError, match="answers 302"):
            discover(master.url, OURS.pem, None)


def _drips_headers(connection: Any) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(DRIPS):
        connection.sendall(b"X-%d: y\r\n" % (number % 90))
        time.sleep(DRIP_S)


def _drips_its_body(connection: Any) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(DRIPS):
        connection.sendall(b" ")
        time.sleep(DRIP_S)


DRIPS, DRIP_S = 80, 0.05  # four seconds; each drip comes in time


@pytest.mark.parametrize("drip", [_drips_headers, _drips_its_body])
@pytest.mark.parametrize("authority", ["", OURS.pem], ids=["first contact", "joined"])
def test_an_answer_that_comes_in_drips_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drip: Any, authority: str
) -> None:
    monkeypatch.setattr(master_http, "WHOLE_S", 0.5)
    with front(MASTER, tmp_path, lambda _: document()) as master:
        master.instead = drip
        with pytest.raises(MasterHttpError, match="no whole answer within"):
            discover(master.url, authority, TOKEN)


def test_what_a_stranger_says_fills_no_log(tmp_path: Path) -> None:
    """A document that nobody has vouched for, with ten thousand authorities."""
    many = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" * 10_000
    with (
        front(MASTER, tmp_path, lambda _: document(certificate_authority=many)) as master,
        pytest.raises(UntrustedError, match="this is not the master that gave") as caught,
    ):
        discover(master.url, "", TOKEN)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param({"grpc": "nowhere"}, id="no port"),
        pytest.param({"grpc": 7}, id="no text"),
        pytest.param({"join": "[::1:1"}, id="join"),
        pytest.param({"certificate_authority": 5}, id="authority"),
    ],
)
def test_a_document_that_is_none_is_one_clear_line(tmp_path: Path, bad: dict[str, Any]) -> None:
    with (
        front(MASTER, tmp_path, lambda _: document(**bad)) as master,
        pytest.raises(DocumentError, match="is not a discovery document"),
    ):
        discover(master.url, OURS.pem, None)


def test_plain_text_off_loopback_is_refused() -> None:
    with pytest.raises(UntrustedError, match="plain text only to a loopback address"):
        discover("http://192.0.2.1:8080", "", None)


def test_a_server_without_tls_is_named_as_such() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Silent) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        with pytest.raises(UntrustedError, match="it does not speak TLS there"):
            discover(f"https://127.0.0.1:{server.server_address[1]}", OURS.pem, None)
        server.shutdown()
        serving.join()


class _Silent(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
