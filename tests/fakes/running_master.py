"""A real master in the test's own loop, and its HTTP API called as a client does."""

import asyncio
import hashlib
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import requests

from procs.master.main import Addresses, Settings, running

REPOSITORY = Path(__file__).parents[2]
POLL_S = 0.01
PATIENCE_S = 20.0


class Http:
    """The API at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def call(self, method: str, path: str, **more: Any) -> requests.Response:
        return await asyncio.to_thread(
            requests.request, method, self.url + path, timeout=10, **more
        )

    async def get(self, path: str) -> Any:
        response = await self.call("GET", path)
        assert response.status_code == 200, response.text
        return response.json()

    async def submit(self, **body: Any) -> str:
        response = await self.call("POST", "/api/v1/tasks", json={"command": ["x"]} | body)
        assert response.status_code == 201, response.text
        return str(response.json()["task_id"])

    async def upload(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        response = await self.call("PUT", f"/api/v1/inputs/{sha256}", data=content)
        assert response.status_code == 201, response.text
        return sha256

    async def task(self, task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.get(f"/api/v1/tasks/{task_id}")
        return found

    async def cancel(self, task_id: str) -> dict[str, Any]:
        response = await self.call("POST", f"/api/v1/tasks/{task_id}/cancel")
        found: dict[str, Any] = response.json()
        return found

    async def until(self, task_id: str, state: str, attempt: int = 1) -> dict[str, Any]:
        """The task, once it is so."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                task = await self.task(task_id)
                if (task["state"], task["attempt"]) == (state, attempt):
                    return task
                await asyncio.sleep(POLL_S)


class MasterProcess:
    """`hivemind-master serve` as a process of its own, on the same ports at each start."""

    def __init__(
        self, data: Path, *options: str, program: tuple[str, ...] = ("procs.master",)
    ) -> None:
        self._data, self._options, self._program = data, options, program
        self.grpc, self.http, self.join = "127.0.0.1:0", "127.0.0.1:0", ""
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *self._program, "serve", "--data", str(self._data)),
            *("--listen", self.grpc, "--http", self.http, *self._options),
            cwd=REPOSITORY,
            env={k: v for k, v in os.environ.items() if not k.startswith("GRPC_")},  # its own
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE_S)
        ready = re.match(
            rb"hivemind-master ready grpc=(\S+) http=https?://(\S+)(?: join=(\S+))?", line
        )
        assert ready is not None, line
        self.grpc, self.http = ready[1].decode(), ready[2].decode()
        self.join = (ready[3] or b"").decode()

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.communicate()

    async def stop(self) -> int:
        """Ask it to end; returns its exit code."""
        assert self._process is not None
        self._process.terminate()
        await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode


def with_master(
    tmp_path: Path,
    scenario: Callable[[Addresses, Http], Awaitable[None]],
    **settings: Any,
) -> None:
    """Run `scenario` against a master on `tmp_path`/master."""

    async def run() -> None:
        chosen = Settings("127.0.0.1:0", "127.0.0.1:0", tmp_path / "master", **settings)
        async with running(chosen) as addresses:
            await scenario(addresses, Http(addresses.http))

    asyncio.run(run())
