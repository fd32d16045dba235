"""Who may publish what, and when it is stale."""

import pytest

from shared.topics import MISSED_BEATS, TOPICS, Topic, owned_by


@pytest.mark.parametrize(
    ("process", "topics"),
    [
        pytest.param("master_link", ("task.want", "link.state", "vpn.want"), id="several"),
        pytest.param("executor", ("task.state",), id="one"),
        pytest.param("monitor@host", ("host.load",), id="the host's monitor"),
        pytest.param("monitor@gpu0", ("gpu.load",), id="a monitor of GPUs"),
        pytest.param("monitor", (), id="a monitor has an instance"),
        pytest.param("monitor@", (), id="an empty instance"),
        pytest.param("executor@2", (), id="only monitors have instances"),
        pytest.param("stranger", (), id="unknown"),
        pytest.param("", (), id="nobody"),
    ],
)
def test_a_process_owns_its_topics(process: str, topics: tuple[str, ...]) -> None:
    assert owned_by(process) == topics


def test_a_topic_is_stale_after_three_missed_beats() -> None:
    assert MISSED_BEATS == 3
    assert Topic("x.y", "z", 1.0).stale_after_s == 3.0
    assert Topic("x.y", "z", 4.0).stale_after_s == 0.75


def test_every_topic_has_an_owner_that_may_publish_it() -> None:
    instances = {"monitor": ("monitor@host", "monitor@gpu0")}
    for topic in TOPICS.values():
        owners = instances.get(topic.owner, (topic.owner,))
        assert sum(topic.name in owned_by(owner) for owner in owners) == 1
