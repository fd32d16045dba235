"""Fixtures for tests of every folder; what only one folder needs goes into its own conftest.py.

HIVEMIND_TEST_ENGINE=<short folder>: the engine there is used and stays up between runs.
"""

import fcntl
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import procs.master_link  # noqa: F401  before gRPC is imported: TLS 1.3 alone, as in its process
from tests.system.engine.private import PrivateEngine

# Locks of this checkout's test processes, and nothing that has to be removed.
QUEUE, ROOM = Path(__file__), Path(__file__).parent


@contextmanager
def locked(path: Path, kind: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing leaves it to a child that was forked
        os.close(descriptor)


@contextmanager
def turn(kind: int) -> Iterator[None]:
    """Who waits for the room holds the queue meanwhile: nobody overtakes."""
    with ExitStack() as stack:
        with locked(QUEUE, fcntl.LOCK_EX):
            stack.enter_context(locked(ROOM, kind))
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    alone = item.get_closest_marker("alone") is not None
    with turn(fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
        return (yield)


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
