"""The container in which requirements are installed, and what pip's words mean. Pure but for the
look at where pip lies.

The walls are a task's own (sandbox.py), with a network. The keeper runs pip as it runs a task:
so addresses with passwords lie in its `start` alone, and the end is known whatever Docker does.
"""

import errno
import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from procs.executor.claim import Start
from procs.executor.networks import Taken
from procs.executor.quota import DEFAULT_PROCESSES, Grant
from procs.executor.run_record import RunRecord
from procs.executor.sandbox import (
    LABEL_HOME,
    LABEL_LAYER,
    LABEL_TASK,
    OUTPUT_AT,
    TASK_AT,
    Image,
    Place,
    bind,
    container,
    environment,
)
from shared import sentences
from shared.messages import TaskPhase
from shared.sentences import Said
from shared.settings import Settings
from shared.taskdir import MIB

PIP_AT = "/.pip"
LINES, CERT = "requirements.txt", "ca.pem"  # in input/
INSTALLED, SCRATCH = "site", "tmp"  # in output/
SCRATCH_AT = f"{OUTPUT_AT}/{SCRATCH}"
LOG_LIMIT_BYTES = 4 * MIB
INSTALL_S = 15 * 60.0
STILL_S = 180.0  # without a word, a byte on disk or a second of CPU it will not come
MOST_PROGRESS = 80  # characters
MOST_ERRORS = 3  # lines
TOO_OLD = 85  # our own exit code; pip's are 0 to 23
BOOT = (  # also understood by a Python that is too old for pip
    "import sys\n"
    "if sys.version_info < ({floor}):\n sys.stderr.write(sys.version)\n sys.exit({too_old})\n"
    "import runpy\n"
    "sys.path.insert(0, {at!r})\n"
    "runpy.run_module('pip', run_name='__main__', alter_sys=True)\n"
)
OPTIONS = (
    "install", "--target", f"{OUTPUT_AT}/{INSTALLED}", "--prefer-binary", "--no-cache-dir",
    "--no-input", "--disable-pip-version-check", "--no-color", "--progress-bar", "off",
    "-r", f"{TASK_AT}/{LINES}",
)  # fmt: skip
FILE_TOO_LARGE = os.strerror(errno.EFBIG)  # one file may be as large as all of it
DISK_FULL = os.strerror(errno.ENOSPC)  # the host's
RESULT, END_OF_OUTPUT = "╰─> ", "[end of output]"
STEPS = re.compile(r"(Collecting|Downloading|Building|Preparing|Getting|Installing) .*")


@dataclass(frozen=True)
class PipSettings:
    """The owner's: where packages come from. Addresses may hold passwords."""

    index_url: str = field(default="", repr=False)
    extra_index_urls: tuple[str, ...] = field(default=(), repr=False)
    cert: Path | None = None
    proxy: str = field(default="", repr=False)

    @classmethod
    def of(cls, settings: Settings) -> "PipSettings":
        return cls(
            settings.pip_index_url, tuple(settings.pip_extra_index_url.split()),
            settings.pip_cert, settings.pip_proxy,
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        urls = [url for url in (self.index_url, *self.extra_index_urls) if url]
        plain = [urlsplit(url).netloc.rpartition("@")[2] for url in urls if url.startswith("http:")]
        wished = {
            "PIP_INDEX_URL": self.index_url,
            "PIP_EXTRA_INDEX_URL": " ".join(self.extra_index_urls),
            "PIP_TRUSTED_HOST": " ".join(plain),  # the owner wrote http: pip would refuse it
            "PIP_PROXY": self.proxy,
        }
        return {name: value for name, value in wished.items() if value}

    def without_passwords(self, text: str) -> str:
        """What pip says, fit for a log and a report."""
        for url in (self.index_url, *self.extra_index_urls, self.proxy):
            user = urlsplit(url).netloc.rpartition("@")[0]
            for said in (user, unquote(user)):
                for secret in (said, said.partition(":")[2]):
                    text = text.replace(secret, "…") if secret else text
        return re.sub(r"://[^/@\s]*@", "://", text)


def pip_folder() -> Path:
    """The package of the worker's own pip: an image needs none."""
    found = importlib.util.find_spec("pip")
    if found is None or found.origin is None:
        raise FileNotFoundError("the worker's environment has no pip: run ./install.sh")
    return Path(found.origin).parent


def python_floor() -> tuple[int, ...]:
    """The oldest Python that the worker's pip runs on."""
    said = re.search(r">=\s*(\d+)\.(\d+)", metadata.metadata("pip")["Requires-Python"] or "")
    return (int(said[1]), int(said[2])) if said else (3, 9)


def start(image: Image, settings: PipSettings, grant: Grant, *, with_cert: bool) -> Start:
    """What the keeper runs."""
    floor = ", ".join(map(str, python_floor()))
    code = BOOT.format(floor=floor, too_old=TOO_OLD, at=PIP_AT)
    own = tuple(line for line in image.environment if not line.startswith("PIP_"))
    given = {
        "TMPDIR": SCRATCH_AT,  # on disk: /tmp counts as memory
        "HOME": SCRATCH_AT,
        "PIP_CONFIG_FILE": "/dev/null",  # the image's would choose an index too
        "PYTHONUNBUFFERED": "1",
        **settings.environment(),
        **({"PIP_CERT": f"{TASK_AT}/{CERT}"} if with_cert else {}),
    }
    return Start(
        argv=("python3", "-c", code, *OPTIONS),
        environment=environment(Image(image.digest, environment=own), given, {}),
        log_limit_bytes=LOG_LIMIT_BYTES,
        file_limit_bytes=grant.disk_bytes,
    )


def body(
    place: Place, image: Image, grant: Grant, runtime: str, layer: str, network: Taken
) -> dict[str, Any]:
    """A task's container, but for its labels and pip."""
    granted = replace(
        grant,
        network=network.name,
        gpus=(),  # a card is for the task alone
        processes=max(grant.processes, DEFAULT_PROCESSES),  # a layer is for others too
    )
    made = container(place, image, granted, runtime, network.resolvers)
    made["Labels"] = {
        LABEL_HOME: str(place.home),
        LABEL_LAYER: layer,
        LABEL_TASK: "",  # it is no attempt's, whatever labels the image has
    }
    made["HostConfig"]["Mounts"] += [bind(pip_folder(), f"{PIP_AT}/pip", read_only=True)]
    return made


def progress(line: str) -> str:
    """What a line of pip's says of how far it is; empty: nothing."""
    found = STEPS.match(line.strip())
    return found[0][:MOST_PROGRESS] if found else ""


def overdue(
    began_s: float, moved_s: float, now_s: float, progress: str
) -> Said[TaskPhase] | None:
    """Why there is no point in waiting any longer; None: there is."""
    if now_s - began_s > INSTALL_S:
        minutes = f"{INSTALL_S / 60:.0f}"
        return sentences.REQUIREMENTS_TOO_SLOW.say(minutes=minutes, progress=progress)
    if now_s - moved_s > STILL_S:
        return sentences.REQUIREMENTS_STUCK.say(seconds=f"{STILL_S:.0f}", progress=progress)
    return None


def why(
    record: RunRecord, lines: Iterable[str], image: str, grant: Grant
) -> Said[TaskPhase] | None:
    """Why an installation did not succeed; None: it did."""
    ended = record.ended
    oldest = ".".join(map(str, python_floor()))
    if record.failed_errno is not None or ended is None:
        return sentences.REQUIREMENTS_WITHOUT_PYTHON.say(image=image, oldest=oldest)
    if ended.oom_kills:  # though pip may have done without what was being built: others share it
        return sentences.REQUIREMENTS_OUT_OF_MEMORY.say(limit=grant.memory_bytes)
    if ended.code == 0:
        return None
    if ended.code == TOO_OLD:
        return sentences.REQUIREMENTS_PYTHON_OLD.say(image=image, oldest=oldest)
    words = _words(lines) or f"pip exited {ended.code}"
    if FILE_TOO_LARGE in words:
        used, limit = f"over {grant.disk_bytes}", grant.disk_bytes
        return sentences.REQUIREMENTS_OUT_OF_DISK.say(used=used, limit=limit)
    if DISK_FULL in words:
        return sentences.REQUIREMENTS_NODE.say(words=words)
    return sentences.REQUIREMENTS_NOT_INSTALLED.say(words=words)


def _words(lines: Iterable[str]) -> str:
    """pip's errors, or the package that failed, and the last word of its build; or its last."""
    said = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    named = [line.removeprefix(RESULT) for line in said if line.startswith(RESULT)]
    ends = [line for line, after in pairwise(said) if after == END_OF_OUTPUT]
    failed = errors[-MOST_ERRORS:] or (named[-1:] if ends else said[-MOST_ERRORS:])
    return "; ".join((*failed, *ends[-1:]))
