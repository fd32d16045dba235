"""base 10 × (1.5 | 1.2 | 1.0 | 0.8) + gpu × 0.01, cut to an integer: every branch and edge."""

import pytest

from shared.rewards import reward


@pytest.mark.parametrize(
    ("cpu_pct", "memory_pct", "gpu_pct", "earned"),
    [
        pytest.param(100.0, 100.0, 0.0, 15, id="all in use"),
        pytest.param(100.0, 60.1, 0.0, 15, id="just over 80"),
        pytest.param(80.0, 80.0, 0.0, 12, id="80 is not over 80"),
        pytest.param(100.0, 60.0, 0.0, 12, id="average of 80 from unequal halves"),
        pytest.param(50.1, 50.1, 0.0, 12, id="just over 50"),
        pytest.param(50.0, 50.0, 0.0, 10, id="50 is not over 50"),
        pytest.param(20.1, 20.1, 0.0, 10, id="just over 20"),
        pytest.param(20.0, 20.0, 0.0, 8, id="20 is not over 20"),
        pytest.param(40.0, 0.0, 0.0, 8, id="one half idle"),
        pytest.param(40.1, 0.0, 0.0, 10, id="the average counts, not the lower half"),
        pytest.param(0.0, 0.0, 0.0, 8, id="idle"),
        pytest.param(0.0, 0.0, 99.9, 8, id="a GPU just short of one more is cut"),
        pytest.param(0.0, 0.0, 100.0, 9, id="a full GPU earns one more"),
        pytest.param(100.0, 100.0, 100.0, 16, id="everything full"),
        pytest.param(60.0, 60.0, 100.0, 13, id="12 + 1"),
        pytest.param(30.0, 30.0, 100.0, 11, id="10 + 1"),
        pytest.param(0.0, 0.0, 800.0, 16, id="eight full GPUs, summed"),
        pytest.param(0.1, 39.9, 0.0, 8, id="0.1 + 39.9 is exactly 40"),
        pytest.param(20.000000000000004, 20.0, 0.0, 10, id="the next float over 20 is over 20"),
        pytest.param(70.11, 29.89, 0.0, 10, id="70.11 + 29.89 is exactly 100"),
    ],
)
def test_reward(cpu_pct: float, memory_pct: float, gpu_pct: float, earned: int) -> None:
    assert reward(cpu_pct, memory_pct, gpu_pct) == earned


def test_tenths_never_fall_on_the_wrong_side_of_a_step() -> None:
    """Against integer arithmetic: each pair of tenths whose average is at or next to a step."""
    for step, at, above in ((20, 8, 10), (50, 10, 12), (80, 12, 15)):
        for cpu_tenths in range(max(0, step * 20 - 1000), min(1000, step * 20) + 1):
            memory_tenths = step * 20 - cpu_tenths
            assert reward(cpu_tenths / 10, memory_tenths / 10, 0.0) == at
            assert reward(cpu_tenths / 10, (memory_tenths + 1) / 10, 0.0) == above


def test_hundredths_of_a_gpu_are_cut_exactly() -> None:
    for hundreds in range(200):
        assert reward(0.0, 0.0, hundreds * 100.0) == 8 + hundreds
        assert reward(0.0, 0.0, hundreds * 100.0 + 99.99) == 8 + hundreds
