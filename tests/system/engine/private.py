"""A Docker engine of the tests' own, driven by start.sh and stop.sh beside this file.

Only what a test needs to do *to* an engine; what it needs to do *with* one goes through `host`.
"""

import os
import select
import signal
import subprocess
from functools import cached_property
from pathlib import Path

import docker

HERE = Path(__file__).resolve().parent
BUILD_IMAGE = HERE.parents[2] / "procs/executor/image/build.sh"
TASK_IMAGE = "hivemind-test-task:1"


class EngineScriptError(RuntimeError):
    """A script that handles the engine failed; the text is what it said."""


class PrivateEngine:
    """The engine whose whole state lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def host(self) -> str:
        """What DOCKER_HOST must be to reach it."""
        return f"unix://{self.folder}/docker.sock"

    @cached_property
    def task_image(self) -> str:
        """The tag of the task image, which is built when it is first asked for."""
        _run(str(BUILD_IMAGE), TASK_IMAGE, docker_host=self.host)
        return TASK_IMAGE

    def take_task_image(self, other: "PrivateEngine") -> str:
        """From an engine that has it, in a fraction of the time that building it takes."""
        source = docker.APIClient(base_url=other.host, version="1.41")
        target = docker.APIClient(base_url=self.host, version="1.41")
        archive = source.get_image(other.task_image)
        for _ in target.load_image(archive):  # type: ignore[no-untyped-call]
            pass
        source.close()
        target.close()
        return TASK_IMAGE

    def start(self, *options: str) -> None:
        """Returns once it answers; does nothing when it runs already."""
        _run(str(HERE / "start.sh"), str(self.folder), *options)

    def kill(self) -> None:
        """SIGKILL, and back only when the engine is dead; its containers live on."""
        pid = int((self.folder / "docker.pid").read_text())
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [])
        finally:
            os.close(pidfd)

    def stop(self, *options: str) -> None:
        """Ends it with all that it ran; `--purge` removes its folder too."""
        _run(str(HERE / "stop.sh"), str(self.folder), *options)


def _run(*command: str, docker_host: str = "") -> None:
    done = subprocess.run(
        command,
        env={**os.environ, "DOCKER_HOST": docker_host},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise EngineScriptError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}")
