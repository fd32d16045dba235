"""How long to wait before the next try to reach the master. Pure: randomness is passed in."""

FIRST_WAIT_S = 5.0  # spread over this, so that a fleet does not come back as a storm
SHORTEST_WINDOW_S = 10.0
LONGEST_WINDOW_S = 60.0  # with the halving below: under 60 tries in 30 minutes


def next_delay_s(failures: int, uniform: float) -> float:
    """Seconds to wait after `failures` failed tries in a row (0: the first wait).

    `uniform` is a random number in [0, 1). The first wait is U(0, 5 s), later ones
    U(w/2, w) with w doubling from 10 to 60 s.
    """
    if failures <= 0:
        return uniform * FIRST_WAIT_S
    window_s = min(SHORTEST_WINDOW_S * 2.0 ** min(failures - 1, 10), LONGEST_WINDOW_S)
    return window_s * (0.5 + uniform / 2)
