"""wg0.conf: what is written is read, what is broken is refused with its line."""

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings

from procs.vpn.conf import (
    MOST_BYTES,
    Conf,
    ConfError,
    Interface,
    Peer,
    for_wg,
    parse,
    parse_bytes,
    written,
)
from tests.vpn.confs import (
    BROKEN,
    CONFIGURATIONS,
    GOOD,
    A,
    B,
    C,
    Made,
    with_extras,
)


@settings(max_examples=2000, deadline=None)
@given(CONFIGURATIONS)
def test_what_is_written_is_read(made: Made) -> None:
    conf = written(made.interface, made.peers, 1234.0)
    assert (conf.interface, conf.peers) == (made.interface, made.peers)
    assert (conf.is_ours, conf.key_made_unix_s) == (True, 1234.0)
    text = with_extras(conf.text, made.extras)
    owners = parse(text)
    assert (owners.text, owners.interface, owners.peers) == (text, made.interface, made.peers)
    assert owners.is_ours is (text == conf.text)
    assert parse_bytes(text.encode()) == owners


def test_a_file_of_an_owner_is_read_in_all_its_forms() -> None:
    text = GOOD.replace("[Interface]", "  [ interface ] # mine").replace("MTU =", "mtu=")
    text = text.replace(f"= {A}", f"={A}# secret").replace("\n", "\r\n")
    conf = parse(text)
    assert conf.text == text
    assert conf.interface == Interface(A, ("10.8.0.2/16",), 51821, 0xCA6C, 1400, "auto")
    assert conf.peers == (
        Peer(B, C, ("vpn.example.org", 51820), ("10.8.0.0/16", "fd00::/64"), 25),
    )


def test_lists_may_be_given_in_parts_and_off_means_none() -> None:
    text = f"[Interface]\nPrivateKey={A}\nAddress=10.0.0.1\nAddress=fd00::1/64\nFwMark=off\n"
    text += f"[Peer]\nPublicKey={B}\nAllowedIPs=10.0.0.9/8\nAllowedIPs=\nPersistentKeepalive=OFF\n"
    conf = parse(text)
    assert conf.interface.addresses == ("10.0.0.1/32", "fd00::1/64")
    assert (conf.interface.fwmark, conf.peers[0].keepalive_s) == (0, 0)
    assert conf.peers[0].allowed_ips == ("10.0.0.0/8",)


def test_what_is_not_heeded_is_said_with_its_line() -> None:
    conf = parse(GOOD.replace("Table = auto", "PostUp = iptables -A FORWARD\nColour = blue"))
    assert conf.unheeded == (
        "line 7: PostUp: commands are not run",
        "line 8: Colour: there is no such key under [Interface]",
    )


@pytest.mark.parametrize(
    ("text", "line", "word"), BROKEN, ids=[f"{n}" for n in range(len(BROKEN))]
)
def test_a_broken_file_is_refused_with_its_line(text: str, line: int, word: str) -> None:
    with pytest.raises(ConfError, match=re.escape(word)) as caught:
        parse(text)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"line {line}: ")
    assert not {A, B, C, A[:-1]} & {*re.split(r"[\s'`]+", str(caught.value))}


@pytest.mark.parametrize(
    "line", ["{}", "PrivateKey {}", "MTU = {}", "{} = 1", "[{}]", "[Peer] {}", "{}={}", "Peer = {}"]
)
def test_a_misplaced_key_is_not_shown(line: str) -> None:
    text = GOOD.replace(A, B).replace(C, B) + line.format(A, A)
    try:
        said = repr(parse(text))
    except ConfError as err:
        said = str(err)
    assert not re.search(f"{re.escape(A[:20])}|{re.escape(A[-20:])}", said)


def test_there_are_a_hundred_kinds_of_broken_ones() -> None:
    assert len({text for text, _, _ in BROKEN}) > 100


def test_bytes_that_are_no_text_are_refused_with_their_line() -> None:
    with pytest.raises(ConfError, match="line 3: there is a byte"):
        parse_bytes(f"[Interface]\nPrivateKey={A}\n# ".encode() + b"\xff\n")
    with pytest.raises(ConfError, match="larger than"):
        parse_bytes(b"#" * (MOST_BYTES + 1))


def test_a_key_is_in_no_words_about_it() -> None:
    conf = written(Interface(A), (Peer(B, preshared_key=C),), 1.0)
    shown = repr(conf) + str(conf) + repr(conf.interface) + repr(parse(GOOD).peers)
    assert B in shown, "the public one alone"
    assert not re.search(f"{re.escape(A)}|{re.escape(C)}", shown)


def test_a_change_by_hand_makes_it_the_owners() -> None:
    ours = written(Interface(A), (Peer(B),), 1.0)
    assert ours.is_ours
    assert parse(ours.text).is_ours
    assert not parse(ours.text.replace(B, C)).is_ours
    assert not parse(ours.text + "\n").is_ours
    assert not parse(GOOD).is_ours


# ------------------------------------------------------------------ WireGuard's own commands


def test_wg_quick_takes_what_is_generated(tmp_path: Path) -> None:
    path = tmp_path / "hmq0.conf"
    for conf in (parse(GOOD), written(Interface(A, ("10.8.0.2/32",)), (), 1.0), _full()):
        path.touch(0o600)
        path.write_text(conf.text)
        done = subprocess.run(("wg-quick", "strip", path), capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        stripped = parse(done.stdout)
        bare = (conf.interface.private_key, conf.interface.listen_port, conf.interface.fwmark)
        assert stripped.interface == Interface(bare[0], (), bare[1], bare[2])
        assert stripped.peers == conf.peers


def _full() -> Conf:
    peer = Peer(B, "", ("vpn.example.org", 51820), ("10.8.0.0/16",), 25)
    return written(Interface(A, ("10.8.0.2/32",)), (peer,), 1.0)


def test_wg_is_given_addresses_and_none_of_wg_quicks_keys() -> None:
    text = for_wg(parse(GOOD), {("vpn.example.org", 51820): ("fd00::9", 51820)}, 7)
    assert "Endpoint = [fd00::9]:51820" in text
    assert "FwMark = 51820" in text, "the owner's own wins"
    assert not re.search("Address|MTU|Table", text)
    assert "FwMark = 7" in for_wg(_full(), {}, 7)
    assert "Endpoint" not in for_wg(_full(), {}, 7), "not known now"
