"""How fast one core of this machine is: measured once, kept in `lib/cpu_score.json`, and measured
again on another CPU. Higher is faster; 100 is a core of an AMD EPYC of 2021.

Half of it is interpreted code, half compiled. Only the time on the CPU counts, and of many short
rounds the best, so that other programs hardly change it.
"""

import logging
import math
import random
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from shared.files import write_atomic

CPU_INFO = Path("/proc/cpuinfo")
NAMING = ("model name", "CPU implementer", "CPU part", "uarch", "cpu")  # by architecture
METHOD = 1  # another one makes other figures: they are measured again
ROUNDS, STEPS, WORDS, VOCABULARY = 15, 20_000, 40_000, 500
LETTERS = b"etaoinshrdlucmfwypvbgkqjxz"
INTERPRETED_S, COMPILED_S = 0.0037, 0.0067  # a round of each, at the score 100


class Score(msgspec.Struct, frozen=True):
    """As it is kept."""

    cpu: str
    method: int
    score: float


def cpu_name(text: str) -> str:
    """Of /proc/cpuinfo: what tells this CPU from another."""
    found = dict.fromkeys(
        value.strip()
        for key, _, value in (line.partition(":") for line in text.splitlines())
        if key.strip() in NAMING
    )
    return ", ".join(found)


def measure() -> float:
    """A fifth of a second."""
    rng = random.Random(1)
    words = [bytes(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(VOCABULARY)]
    text = b" ".join(rng.choices(words, k=WORDS))
    interpreted_s = compiled_s = math.inf
    for _ in range(ROUNDS):
        interpreted_s = min(interpreted_s, _seconds(_interpreted))
        compiled_s = min(compiled_s, _seconds(lambda: zlib.compress(text)))
    speed = math.sqrt(INTERPRETED_S / interpreted_s * COMPILED_S / compiled_s)
    return float(round(100 * speed, 1))


def _interpreted() -> None:
    table, number = {}, 1
    for _ in range(STEPS):
        number = (number * 1103515245 + 12345) & 0x7FFFFFFF
        table[number & 1023] = number


def _seconds(work: Callable[[], object]) -> float:
    began_s = time.thread_time()
    work()
    return time.thread_time() - began_s


class CpuScore:
    """`value` is 0 until it is known."""

    def __init__(
        self, path: Path, log: logging.Logger, measure: Callable[[], float] = measure
    ) -> None:
        self.value = 0.0
        self._path, self._log, self._measure = path, log, measure
        self._thread = threading.Thread(target=self._work, name="score", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    # -------------------------------------------------------------- in the thread

    def _work(self) -> None:
        cpu = cpu_name(CPU_INFO.read_text())
        known = self._read()
        if known is not None and (known.cpu, known.method) == (cpu, METHOD):
            self.value = known.score
            return
        score = Score(cpu, METHOD, self._measure())
        self.value = score.score
        self._log.info("one core of %s has the score %.1f", cpu or "this CPU", score.score)
        try:
            write_atomic(self._path, msgspec.json.encode(score))
        except OSError as err:
            self._log.warning("the CPU's score is not kept: %s", err)

    def _read(self) -> Score | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Score)
        except (OSError, ValueError):  # there is none yet, or it is broken
            return None
