"""An HTTPS server with any certificate, clock and TLS version, that answers as it is told."""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.fakes.certificates import Party

Document = Callable[[int], dict[str, Any]]  # of the number of the request, from 0


class Front:
    """What it does can be changed at any time."""

    def __init__(self, party: Party, folder: Path, document: Document) -> None:
        self.document = document
        self.clock_ahead_s = 0.0
        self.status = 200
        self.instead: Callable[[Any], None] | None = None  # given the connection, it answers
        self.requests = 0
        self.headers: list[dict[str, str]] = []  # of each request, names in lower case
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(party.write(folder))
        self.url = ""


@contextmanager
def front(party: Party, folder: Path, document: Document) -> Iterator[Front]:
    """`party` shows its certificate; connections that fail are of no interest here."""
    told = Front(party, folder, document)

    class Handler(BaseHTTPRequestHandler):
        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + told.clock_ahead_s, usegmt=True)

        def do_GET(self) -> None:
            if told.instead is not None:
                with suppress(OSError):  # who asked may have gone
                    told.instead(self.connection)
                return
            body = json.dumps(told.document(told.requests)).encode()
            told.requests += 1
            told.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(told.status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Location", "https://127.0.0.1:1/")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    class Server(ThreadingHTTPServer):
        def get_request(self) -> Any:
            plain, address = super().get_request()
            try:
                return told.context.wrap_socket(plain, server_side=True), address
            except OSError:
                plain.close()
                raise

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    told.url = f"https://127.0.0.1:{server.server_address[1]}"
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
