"""A home whose path is short enough for unix sockets."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hm-", dir="/tmp"))
    (path / "run" / "bus").mkdir(parents=True)
    yield path
    subprocess.run(["rm", "-rf", path], check=True)  # shutil gives up on deep trees
