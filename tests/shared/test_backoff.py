"""Waits are in their ranges, and a fleet that is shut out stays polite."""

import random

import pytest

from shared.backoff import next_delay_s

ALMOST_ONE = 1 - 2**-53
HALF_HOUR_S = 1800.0


@pytest.mark.parametrize(
    ("failures", "least_s", "most_s"),
    [
        pytest.param(0, 0.0, 5.0, id="first"),
        pytest.param(1, 5.0, 10.0, id="second"),
        pytest.param(2, 10.0, 20.0, id="third"),
        pytest.param(3, 20.0, 40.0, id="fourth"),
        pytest.param(4, 30.0, 60.0, id="fifth is capped"),
        pytest.param(10_000_000, 30.0, 60.0, id="after months"),
    ],
)
def test_a_wait_is_in_its_range(failures: int, least_s: float, most_s: float) -> None:
    assert next_delay_s(failures, 0.0) == least_s
    assert next_delay_s(failures, 0.5) == (least_s + most_s) / 2
    assert most_s - 1e-9 < next_delay_s(failures, ALMOST_ONE) <= most_s


def _tries(uniform: random.Random) -> int:
    """Tries in the first half hour of a master that never answers."""
    now_s, tries = 0.0, 0
    while (now_s := now_s + next_delay_s(tries, uniform.random())) < HALF_HOUR_S:
        tries += 1
    return tries


def test_at_most_sixty_tries_in_half_an_hour() -> None:
    tries = [_tries(random.Random(seed)) for seed in range(2000)]
    assert max(tries) <= 60
    assert min(tries) >= 30  # and it does go on trying


def test_a_fleet_does_not_come_back_at_once() -> None:
    uniform = random.Random(1)
    waits = [next_delay_s(0, uniform.random()) for _ in range(1000)]
    fullest = max(sum(1 for w in waits if second <= w < second + 1) for second in range(5))
    assert fullest < 300  # of 1000 nodes, spread over five seconds
