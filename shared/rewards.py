"""What use of the machine earns: one formula, for a report interval and for a task alike."""

from decimal import Decimal

BASE = 10
GPU_FACTOR = Decimal("0.01")
STEPS = (  # average use above this percentage -> multiplier
    (80, Decimal("1.5")),
    (50, Decimal("1.2")),
    (20, Decimal("1.0")),
)
IDLE = Decimal("0.8")


def reward(cpu_pct: float, memory_pct: float, gpu_pct: float) -> int:
    """base 10 × multiplier(average of CPU and memory) + GPU × 0.01, cut to an integer.

    All three are percentages of use over the interval. Decimal arithmetic on the shortest
    text of each figure: a sum of binary fractions must not cut 12 to 11.
    """
    average = (Decimal(repr(cpu_pct)) + Decimal(repr(memory_pct))) / 2
    multiplier = next((m for above, m in STEPS if average > above), IDLE)
    return int(BASE * multiplier + Decimal(repr(gpu_pct)) * GPU_FACTOR)
