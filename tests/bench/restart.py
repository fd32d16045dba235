"""How long each part of the worker is away after kill -9: every figure, and the maximum.

python -m tests.bench.restart [ROUNDS]
"""

import sys

from tests.bench.executor import own_engine
from tests.system.restarts import each_killed_in_turn
from tests.system.whole import whole

PROMISE_S = 1.0


def main(rounds: int) -> float:
    longest: dict[str, float] = {}
    with own_engine() as engine, whole(engine.host, engine.task_image) as (worker, _):
        for _round in range(rounds):
            for restart in each_killed_in_turn(worker, engine):
                print(restart, flush=True)
                assert not restart.changed, restart
                longest[restart.what] = max(restart.away_s, longest.get(restart.what, 0.0))
    programs = max(s for what, s in longest.items() if what not in ("supervisord", "dockerd"))
    print(f"maximum of {rounds} rounds: a program {programs:.3f} s (promise {PROMISE_S:g} s),")
    print(f"  supervisord with all programs {longest['supervisord']:.3f} s, ", end="")
    print(f"dockerd {longest['dockerd']:.3f} s")
    return programs


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3) > PROMISE_S)
