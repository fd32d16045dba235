"""What several tests of the whole worker share."""

from collections.abc import Iterator

import pytest

from tests.system.engine.private import PrivateEngine
from tests.system.whole import Master, Worker, whole


@pytest.fixture(scope="module")
def running(engine: PrivateEngine) -> Iterator[tuple[Worker, Master]]:
    """A worker and its master, for all tests of a file that leave both as they were."""
    with whole(engine.host, engine.task_image) as both:
        yield both
