"""A supervisord's door that only answers: the programs it is given, and how often it was asked."""

import socket
import threading
from pathlib import Path

ROW = (
    "<value><struct>{}<member><name>pid</name><value><int>{pid}</int></value></member>"
    "<member><name>start</name><value><int>1000</int></value></member>"
    "<member><name>stop</name><value><int>0</int></value></member>"
    "<member><name>exitstatus</name><value><int>0</int></value></member></struct></value>"
)
TEXT = "<member><name>{}</name><value><string>{}</string></value></member>"


class FakeSupervisord:
    """Listens at `path`; `pids` may be changed while it does. `asked` holds the methods."""

    def __init__(self, path: Path, pids: dict[str, int]) -> None:
        self.pids = pids
        self.asked: list[str] = []
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(path))
        self._door.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._door.accept()
            except OSError:
                return  # closed
            with caller:
                request = caller.recv(65536)
                if not request:
                    continue  # the waker, which only connects
                self.asked.append(request.partition(b"<methodName>")[2].split(b"<")[0].decode())
                caller.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + self._answer())

    def _answer(self) -> bytes:
        rows = ""
        for name, pid in self.pids.items():
            fields = {"name": name, "group": name, "statename": "RUNNING", "spawnerr": ""}
            texts = "".join(TEXT.format(field, value) for field, value in fields.items())
            rows += ROW.format(texts, pid=pid)
        value = f"<value><array><data>{rows}</data></array></value>"
        return f"<methodResponse><params><param>{value}</param></params></methodResponse>".encode()

    def close(self) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self._thread.join()
