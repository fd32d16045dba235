"""The keeper's binary: shipped ready beside its source, or built from it once.

Its name and its `--version` carry the digest of the source, so a binary of another source is
never used. What the keeper does stands in keeper/keeper.c.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from shared.files import sync_directory, sync_file

SOURCE = Path(__file__).parent / "keeper" / "keeper.c"
SHIPPED = SOURCE.with_name("keeper")
COMPILERS = ("musl-gcc", "cc", "gcc")  # musl first: a tenth of the size
FLAGS = ("-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none")
BUILD_TIMEOUT_S = 120.0
ASIDE = ".keeper-"  # the beginning of the name of one that is being made
MODE = 0o755  # the task's user executes it


class KeeperBuildError(Exception):
    """There is no keeper and none could be made; the text says what to do."""


def source_digest() -> str:
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]


def ensure_keeper(directory: Path) -> Path:
    """The ready binary in `directory`; made there if it is not. Blocks while it compiles. Nobody
    else makes one there: what is half made is of a life that was killed."""
    for left in directory.glob(f"{ASIDE}*"):
        left.unlink(missing_ok=True)
    digest = source_digest()
    ready = directory / f"keeper-{digest}"
    if _version(ready) == digest:
        return ready
    directory.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=ASIDE, dir=directory)
    os.close(descriptor)
    aside = Path(name)
    try:
        _make(aside, digest)
        aside.chmod(MODE)
        if _version(aside) != digest:
            raise KeeperBuildError(f"{aside} can't be run: is {directory} mounted noexec?")
        sync_file(aside)
        aside.replace(ready)
    finally:
        aside.unlink(missing_ok=True)
    sync_directory(directory)
    return ready


def _make(target: Path, digest: str) -> None:
    if _version(SHIPPED) == digest:
        shutil.copyfile(SHIPPED, target)
        return
    reasons = []
    for compiler in filter(shutil.which, COMPILERS):
        reason = _compile(compiler, target, digest)
        if reason is None:
            return
        reasons.append(f"{compiler}: {reason}")
    why = "; ".join(reasons) or "there is no C compiler"
    raise KeeperBuildError(f"the keeper can't be built ({why}): install gcc and libc6-dev")


def _compile(compiler: str, target: Path, digest: str) -> str | None:
    """None, or what the compiler said."""
    command = [compiler, *FLAGS, f'-DKEEPER_DIGEST="{digest}"', "-o", str(target), str(SOURCE)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=BUILD_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as err:
        return str(err)
    return done.stderr.decode(errors="replace").strip() if done.returncode else None


def _version(binary: Path) -> str | None:
    """None where it is not there or can't be run."""
    try:
        done = subprocess.run(
            [binary, "--version"], capture_output=True, timeout=BUILD_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
