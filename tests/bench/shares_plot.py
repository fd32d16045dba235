"""Draws how the tasks' CPU weight follows the owner's work, for the README.

    python -m tests.bench.shares_plot

A minute of a machine on which tasks want all: the owner works, pauses, and works again.
"""

import math

from procs.executor.shares import NORMAL_PCT, Weight, next_weight

SECONDS = 64
WORK = {range(5, 16): 100.0, range(22, 23): 60.0, range(50, 58): 30.0}  # seconds → % of the machine
PRESSURE_PCT = 50.0  # somebody always waits for CPU
LEVELS_PCT = (100.0, 50.0, 25.0, 12.5, 6.25, 3.1, 1.0)
MARGIN = 11
BARS = " ▁▂▃▄▅▆▇█"


def owner_pct(second: int) -> float:
    return next((pct for during, pct in WORK.items() if second in during), 0.0)


def weights() -> list[float]:
    """Of each second, in percent of the normal one."""
    weight, found = Weight(), []
    for second in range(SECONDS):
        weight = next_weight(weight, owner_pct(second), PRESSURE_PCT, float(second))
        found.append(weight.pct)
    return found


def plot() -> str:
    shown = weights()
    lines = [_line("owner", "".join(BARS[math.ceil(owner_pct(s) / 12.5)] for s in range(SECONDS)))]
    for level in LEVELS_PCT:
        title = f"{level / NORMAL_PCT:4.0%}" if level >= 1 else ""
        lines.append(_line(f"tasks {title}", "".join(" █"[pct >= level] for pct in shown)))
    ticks = "".join(f"{second:<10}" for second in range(0, SECONDS, 10))
    return "\n".join([*lines, _line("seconds", ticks)])


def _line(title: str, content: str) -> str:
    return f"{title:<{MARGIN}}{content}".rstrip()


if __name__ == "__main__":
    print(plot())
