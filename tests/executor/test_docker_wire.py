"""The wire to Docker, and what becomes of answers that no engine gives."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from procs.executor.engine import (
    DockerEngine,
    EngineAwayError,
    EngineRefusedError,
    NotThereError,
)

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
JSON = b'{"Id": "c", "Config": {"Labels": {"a": "b"}}}'
Serve = Callable[[bytes], DockerEngine]


def _answer(listener: socket.socket, answer: bytes) -> None:
    client, _ = listener.accept()
    with client:
        request = b""
        while b"\r\n\r\n" not in request:
            request += client.recv(65536)
        client.sendall(answer)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """An engine that answers one call, with these bytes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    threads: list[threading.Thread] = []

    def start(answer: bytes) -> DockerEngine:
        threads.append(threading.Thread(target=_answer, args=(listener, answer)))
        threads[0].start()
        return DockerEngine(f"unix://{tmp_path}/s")

    yield start
    for thread in threads:
        thread.join()
    listener.close()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK + b"Content-Length: 45\r\n\r\n" + JSON, id="by its length"),
        pytest.param(CHUNKED + b"1e\r\n" + JSON[:30] + b"\r\nf\r\n" + JSON[30:] + b"\r\n0\r\n\r\n",
                     id="in chunks"),
        pytest.param(OK + b"\r\n" + JSON, id="up to its end"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"\r\n" + JSON, id="after a word"),
    ],
)  # fmt: skip
def test_an_answer_is_read_in_every_form(serve: Serve, answer: bytes) -> None:
    found: dict[str, Any] = serve(answer).inspect("c")
    assert found == {"Id": "c", "Config": {"Labels": {"a": "b"}}}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"garbage\r\n\r\n", id="no HTTP"),
        pytest.param(OK + b"X: " + b"x" * 70000 + b"\r\n\r\n", id="a header without end"),
        pytest.param(OK + b"Content-Length: 90\r\n\r\n" + JSON, id="cut"),
        pytest.param(CHUNKED + b"90\r\n" + JSON, id="cut in a chunk"),
        pytest.param(CHUNKED + b"zz\r\n" + JSON, id="a chunk of no length"),
        pytest.param(OK + b"\r\n" + JSON[:20], id="cut, and nobody said how long it is"),
        pytest.param(OK + b"\r\n<html>", id="no JSON"),
        pytest.param(OK + b"\r\n\xff\xfe", id="no text"),
        pytest.param(OK + b"\r\n[]", id="something else"),
    ],
)
def test_what_makes_no_sense_counts_as_no_answer(serve: Serve, answer: bytes) -> None:
    with pytest.raises(EngineAwayError):
        serve(answer).inspect("c")


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (b"404 Not Found", b'{"message": "No such container: c"}', NotThereError, "No such con"),
        (b"409 Conflict", b'{"message": "it is not running"}', EngineRefusedError, "not running"),
        (b"502 Bad Gateway", b"<html>\xff</html>", EngineRefusedError, "<html>"),
        (b"500 X", b"", EngineRefusedError, "Internal Server Error"),
        (b"500 X", b'["list"]', EngineRefusedError, "list"),
        (b"500 X", b'{"message": "' + b"x" * 9999 + b'"}', EngineRefusedError, "x …"),
        (b"302 Found", b"", EngineRefusedError, "Found"),
    ],
)
def test_a_no_is_said_in_its_own_words(
    serve: Serve, status: bytes, body: bytes, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        serve(b"HTTP/1.1 " + status + b"\r\nConnection: close\r\n\r\n" + body).inspect("c")
    assert words in str(caught.value)
    assert type(caught.value) is error


def test_what_runs_already_was_started(serve: Serve) -> None:
    serve(b"HTTP/1.1 304 Not Modified\r\n\r\n").start("c")


def test_an_engine_that_is_not_there_is_away(tmp_path: Path) -> None:
    with pytest.raises(EngineAwayError):
        DockerEngine(f"unix://{tmp_path}/none").inspect("c")


@pytest.mark.parametrize("host", ["", "ssh://host", "tcp://"])
def test_a_host_that_can_not_be_asked_is_said(host: str) -> None:
    with pytest.raises(EngineAwayError, match="DOCKER_HOST must be"):
        DockerEngine(host).ping()


def test_an_engine_that_hangs_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("procs.executor.engine.PING_S", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(EngineAwayError, match="timed out"):
            DockerEngine(f"unix://{tmp_path}/s").ping()
