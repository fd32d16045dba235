"""A few hundred of what tests/bench/fuzz.py throws at a worker by the thousand."""

from tests.bench import fuzz


def test_whatever_comes_is_answered_and_leaves_nothing() -> None:
    counts, _ = fuzz.run(400, number=7)
    assert sum(counts[way] for way in fuzz.WAYS) >= 400
    assert counts["accepted"] > 20
    assert counts["REFUSAL_INVALID"] > 20
    assert counts["no message"] > 20
