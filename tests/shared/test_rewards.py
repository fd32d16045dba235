"""base 10 × (1.5 | 1.2 | 1.0 | 0.8) + gpu × 0.01, cut to an integer: every branch and edge."""

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.pb import hivemind_pb2 as pb
from shared.rewards import NoPercentageError, of_report, of_result, reward


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


# ------------------------------------------------------------------ from what was reported

PERCENT = st.floats(0, 100)


@given(PERCENT, PERCENT, PERCENT)
@example(40.0, 5e-324, 0.0)
def test_the_formula_holds_for_the_figures_as_they_are_written(
    cpu_pct: float, memory_pct: float, gpu_pct: float
) -> None:
    """Exactly, in fractions of the figures' shortest decimal text."""
    cpu, memory, gpu = (Fraction(repr(pct)) for pct in (cpu_pct, memory_pct, gpu_pct))
    average = (cpu + memory) / 2
    factor = Fraction(15 if average > 80 else 12 if average > 50 else 10 if average > 20 else 8, 10)
    assert reward(cpu_pct, memory_pct, gpu_pct) == int(10 * factor + gpu / 100)


@given(PERCENT, PERCENT, st.lists(st.one_of(st.none(), PERCENT), max_size=4))
def test_a_report_earns_the_same_where_it_is_made_and_where_it_is_read(
    cpu_pct: float, memory_pct: float, gpus: list[float | None]
) -> None:
    report = pb.NodeStatusRequest()
    report.average.cpu_percent, report.average.memory_percent = cpu_pct, memory_pct
    for pct in gpus:
        gpu = report.average.gpus.add(utilization_percent=pct or 0.0)
        if pct is None:
            gpu.unknown.append("utilization_percent")
    known = [pct for pct in gpus if pct is not None]
    mean = sum(known) / len(known) if known else 0.0
    sent = pb.NodeStatusRequest.FromString(report.SerializeToString())
    assert of_report(sent) == of_report(report) == reward(cpu_pct, memory_pct, mean)


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -0.1, 1e300])
def test_what_can_not_be_measured_earns_nothing(figure: float) -> None:
    result = pb.TaskResultRequest(report=pb.ExecutionReport(cpu_percent_average=figure))
    with pytest.raises(NoPercentageError):
        of_result(result)
    assert of_result(pb.TaskResultRequest()) == 8
