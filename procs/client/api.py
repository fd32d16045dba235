"""The door to a master's HTTP API. A call that cannot be made is a MasterError, in one sentence.

Once `patient`, a master that is away is asked again for a minute: it may be starting again.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests

from procs.client import trust

CONNECT_TIMEOUT_S = 5.0
QUIET_TIMEOUT_S = 30.0  # a follower hears an empty line every few seconds
PATIENCE_S = 60.0
RETRY_S = 0.5
CHUNK_BYTES = 256 * 1024

T = TypeVar("T")


class MasterError(Exception):
    """The master cannot be reached, or refuses."""


class Away(MasterError):
    """The master cannot be reached."""


class Master:
    """A master's API."""

    def __init__(self, url: str, admin_token_file: Path | None = None) -> None:
        self.url = url.rstrip("/")
        self.patient = False
        self._session = requests.Session()
        if urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1"):
            self._session.trust_env = False  # no proxy can reach our own machine
        if self.url.startswith("https:"):
            try:
                trust.authenticate(
                    self._session, self.url, admin_token_file or trust.token_file()
                )
            except trust.TrustError as err:
                self._session.close()
                raise MasterError(str(err)) from err

    def close(self) -> None:
        self._session.close()

    def get(self, path: str) -> dict[str, Any]:
        return self._retried(lambda: self._json("GET", path))

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Each of the master's POST calls can be sent again safely."""
        return self._retried(lambda: self._json("POST", path, json=body))

    def order(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Once: sent twice, some of these have the effect of twice."""
        response = self._call("POST", path, json=body)
        return dict(response.json()) if response.content else {}

    def put(self, path: str, text: str) -> None:
        """What stands at `path`; put twice, it is the same."""
        self._retried(lambda: self._call("PUT", path, data=text.encode()))

    def has_input(self, sha256: str) -> bool:
        try:
            response = self._session.head(f"{self.url}/api/v1/inputs/{sha256}", timeout=_TIMEOUT)
        except requests.RequestException as err:
            raise self._away(err) from err
        return response.status_code == 200

    def put_input(self, sha256: str, content: Iterator[bytes]) -> None:
        self._call("PUT", f"/api/v1/inputs/{sha256}", data=content)

    def log(
        self, task_id: str, attempt: int | None, sequence: int, follow: bool
    ) -> Iterator[dict[str, Any] | None]:
        """Records, the task as it changes and ends; None where nothing happens for a while."""
        at = "" if attempt is None else f"&attempt={attempt}"
        path = f"/api/v1/tasks/{task_id}/log?sequence={sequence}{at}&follow={int(follow)}"
        try:
            with self._call("GET", path, stream=True) as response:
                for line in response.iter_lines(chunk_size=None):
                    yield json.loads(line) if line else None
        except requests.RequestException as err:
            raise self._away(err) from err

    def follow(self, task_id: str) -> Iterator[dict[str, Any] | None]:
        """The log from its begin to the task's end, across a master that goes and comes back."""
        attempt, sequence = 1, 0
        heard_s = time.monotonic()
        while True:
            try:
                for line in self.log(task_id, attempt, sequence, follow=True):
                    heard_s = time.monotonic()
                    yield line
                    if line and "data" in line:
                        attempt, sequence = line["attempt"], line["sequence"] + 1
                    if line and line.get("task", {}).get("ended"):
                        return
            except Away:
                if time.monotonic() - heard_s > PATIENCE_S:
                    raise
            time.sleep(RETRY_S)

    def output(self, task_id: str) -> Iterator[bytes]:
        """The archive of a task's output."""
        try:
            with self._call("GET", f"/api/v1/tasks/{task_id}/output", stream=True) as response:
                yield from response.iter_content(CHUNK_BYTES)
        except requests.RequestException as err:
            raise self._away(err) from err

    def _json(self, method: str, path: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        found: dict[str, Any] = self._call(method, path, **more).json()
        return found

    def _retried(self, call: Callable[[], T]) -> T:
        begun_s = time.monotonic()
        while True:
            try:
                return call()
            except Away:
                if not self.patient or time.monotonic() - begun_s > PATIENCE_S:
                    raise
                time.sleep(RETRY_S)

    def _call(self, method: str, path: str, **more: Any) -> requests.Response:  # noqa: ANN401
        try:
            response = self._session.request(
                method, self.url + path, timeout=_TIMEOUT, allow_redirects=False, **more
            )
        except requests.RequestException as err:
            raise self._away(err) from err
        if not response.ok:
            with response:
                raise MasterError(_reason(response))
        return response

    def _away(self, err: requests.RequestException) -> Away:
        if isinstance(err, requests.ConnectionError | requests.Timeout):
            return Away(f"no master answers at {self.url}")
        return Away(f"the master at {self.url} cannot be asked: {err}")


_TIMEOUT = (CONNECT_TIMEOUT_S, QUIET_TIMEOUT_S)


def _reason(response: requests.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"the master answers {response.status_code} {response.reason}"
