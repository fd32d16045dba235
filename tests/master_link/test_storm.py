"""A thousand nodes that lose their master at once come back spread out, and soon."""

import random

import pytest

from tests.bench.storm import by_second, tries


@pytest.mark.parametrize("outage_s", [0.0, 600.0, 1800.0])
def test_a_fleet_does_not_storm_its_master(outage_s: float) -> None:
    found = tries(1000, outage_s, random.Random(1))
    counts = by_second(found)
    assert max(counts.values()) < 260  # the first five seconds: a fifth of them in each
    assert all(count < 100 for at_s, count in counts.items() if at_s > 40)
    assert max(of_node[-1] for of_node in found) - outage_s <= 60.0
    assert max(map(len, found)) <= 60
