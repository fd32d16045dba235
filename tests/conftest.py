"""Fixtures for tests of every folder; what only one folder needs goes into its own conftest.py.

HIVEMIND_TEST_ENGINE=<short folder>: the engine there is used and stays up between runs.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import procs.master_link  # noqa: F401  before gRPC is imported: TLS 1.3 alone, as in its process
from tests.system.engine.private import PrivateEngine


@pytest.fixture(scope="session")
def engine() -> Iterator[PrivateEngine]:
    """A private Docker engine, started with the first test that asks for it."""
    kept = os.environ.get("HIVEMIND_TEST_ENGINE")
    private = PrivateEngine(Path(kept or tempfile.mkdtemp(prefix="hme-", dir="/tmp")).resolve())
    try:
        private.start()
        yield private
    finally:
        if not kept:
            private.stop("--purge")
