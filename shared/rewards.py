"""What use of the machine earns: one formula, for a report interval and for a task alike.

Both sides compute it here: the node from what it measured, the master again from what it was told.
"""

import math
from fractions import Fraction

from shared.pb import hivemind_pb2 as pb

BASE = 10
GPU_FACTOR = Fraction("0.01")
STEPS = (  # average use above this percentage -> multiplier
    (80, Fraction("1.5")),
    (50, Fraction("1.2")),
    (20, Fraction("1.0")),
)
IDLE = Fraction("0.8")
MOST_PCT = 10_000.0  # more is no measurement


class NoPercentageError(ValueError):
    """A figure that a node reported is none that can be measured."""


def reward(cpu_pct: float, memory_pct: float, gpu_pct: float) -> int:
    """base 10 × multiplier(average of CPU and memory) + GPU × 0.01, cut to an integer.

    All three are percentages of use over the interval. Exact arithmetic on the shortest text
    of each figure: a sum of binary fractions must not cut 12 to 11.
    """
    average = (Fraction(repr(cpu_pct)) + Fraction(repr(memory_pct))) / 2
    multiplier = next((m for above, m in STEPS if average > above), IDLE)
    return int(BASE * multiplier + Fraction(repr(gpu_pct)) * GPU_FACTOR)


# ------------------------------------------------------------------ from what was reported


def bases(report: pb.NodeStatusRequest) -> list[pb.RewardBasis]:
    """What each interval of the report is paid for."""
    return list(report.reward_bases) or [_basis(report.average)]


def of_report(report: pb.NodeStatusRequest) -> int:
    """NoPercentageError."""
    return sum(
        _checked(basis.cpu_percent, basis.memory_percent, basis.gpu_percent)
        for basis in bases(report)
    )


def of_result(result: pb.TaskResultRequest) -> int:
    """NoPercentageError."""
    used = result.report
    return _checked(
        used.cpu_percent_average, used.memory_percent_average, used.gpu_percent_average
    )


def _basis(usage: pb.ResourceUsage) -> pb.RewardBasis:
    known = [g for g in usage.gpus if "utilization_percent" not in g.unknown]
    figures = [gpu.utilization_percent for gpu in known]
    return pb.RewardBasis(
        cpu_percent=usage.cpu_percent,
        memory_percent=usage.memory_percent,
        gpu_percent=sum(figures) / len(figures) if figures else 0.0,
    )


def _checked(*percentages: float) -> int:
    for pct in percentages:
        if not math.isfinite(pct) or not 0 <= pct <= MOST_PCT:
            raise NoPercentageError(f"{pct:g} is no percentage")
    return reward(*percentages)
