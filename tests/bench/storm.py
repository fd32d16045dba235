"""A fleet loses its master at one moment: when its nodes try again, and when all are back.

    python -m tests.bench.storm [NODES] [OUTAGE_S] [SEED]

On the pure waits alone (shared/backoff.py), a million times faster than the clock. Prints the
tries of each second as a histogram: after the loss, and after the master's return.
"""

import random
import sys
from collections import Counter

from shared.backoff import next_delay_s

BAR = 60  # characters
SHOWN_S = 15  # seconds after the loss, and after the return


def tries(nodes: int, outage_s: float, uniform: random.Random) -> list[list[float]]:
    """Of each node: when it tries, the last being the one that succeeds."""
    found = []
    for _ in range(nodes):
        at_s, of_node = 0.0, list[float]()
        while not of_node or of_node[-1] < outage_s:
            at_s += next_delay_s(len(of_node), uniform.random())
            of_node.append(at_s)
        found.append(of_node)
    return found


def by_second(found: list[list[float]]) -> Counter[int]:
    return Counter(int(at_s) for of_node in found for at_s in of_node)


def histogram(counts: Counter[int], from_s: int, seconds: int) -> list[str]:
    most = max(counts.values())
    return [
        f"{at_s:6} s {counts[at_s]:5} {'#' * round(BAR * counts[at_s] / most)}"
        for at_s in range(from_s, from_s + seconds)
    ]


def main() -> None:
    asked = [int(word) for word in sys.argv[1:]]
    nodes, outage_s, seed = [*asked, *(1000, 600, 1)[len(asked) :]]
    found = tries(nodes, outage_s, random.Random(seed))
    counts, last_s = by_second(found), max(of_node[-1] for of_node in found)
    print(f"{nodes} nodes lose their master for {outage_s} s; tries in each second after the loss:")
    print(*histogram(counts, 0, SHOWN_S), sep="\n")
    print("and after its return:")
    print(*histogram(counts, outage_s, SHOWN_S), sep="\n")
    back = max(count for at_s, count in counts.items() if at_s >= outage_s)
    print(f"peak {max(counts.values())} a second, {back} after the return; at most ", end="")
    print(f"{max(map(len, found))} tries of a node; all back after {last_s - outage_s:.1f} s")


if __name__ == "__main__":
    main()
