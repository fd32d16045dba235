"""NVIDIA's library, faked: nvml/nvml.c built in a folder, and the file that tells it what to say.

The real binding loads it where LD_LIBRARY_PATH names that folder when the process starts.
"""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).parent / "nvml" / "nvml.c"
NAME = "libnvidia-ml.so.1"
ANY = "*"
HANG, HANG_D, SEGV = "hang", "hang_d", "segv"


@dataclass(frozen=True)
class FakeCard:
    """A card, or the instance of one."""

    uuid: str
    name: str = "NVIDIA H100"
    total_mib: int = 81559
    used_mib: int = 1024
    use_pct: int = 7
    celsius: int = 41
    milliwatts: int = 71234
    is_split: bool = False

    @property
    def line(self) -> tuple[object, ...]:
        memory = (self.total_mib, self.used_mib)
        return (self.uuid, self.name, *memory, self.use_pct, self.celsius, self.milliwatts,
                int(self.is_split))  # fmt: skip


ONE, TWO = FakeCard("GPU-1"), FakeCard("GPU-2", name="NVIDIA L4", total_mib=23034)


@dataclass
class FakeNvml:
    """What is changed is said by `say`."""

    folder: Path
    cards: list[FakeCard] = field(default_factory=lambda: [ONE, TWO])
    instances: list[tuple[str, FakeCard]] = field(default_factory=list)  # with their cards
    processes: list[tuple[str, int, int]] = field(default_factory=list)  # card, pid, MiB
    xids: list[tuple[str, int]] = field(default_factory=list)
    faults: list[tuple[str, str, str]] = field(default_factory=list)  # function, card, fault
    driver: str = "570.86.15"

    def __post_init__(self) -> None:
        if not (self.folder / NAME).exists():
            self.build()
        self.say()

    def build(self) -> None:
        """Also in the place of one that is in use, as an update does: aside, then renamed."""
        aside = self.folder / "aside.so"
        flags = ("-O1", "-shared", "-fPIC", "-fvisibility=hidden", f"-Wl,-soname,{NAME}")
        warnings = ("-Wall", "-Wextra", "-Werror")
        subprocess.run(["gcc", *warnings, *flags, "-o", aside, SOURCE], check=True)
        aside.rename(self.folder / NAME)

    @property
    def _file(self) -> Path:
        return self.folder / "says"

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": str(self.folder), "HIVEMIND_FAKE_NVML": str(self._file)}

    def say(self) -> None:
        lines: list[tuple[object, ...]] = [("driver", self.driver)]
        lines += [("card", *card.line) for card in self.cards]
        lines += [("mig", of, *card.line[:4]) for of, card in self.instances]
        lines += [("proc", *process) for process in self.processes]
        lines += [("xid", *error, number) for number, error in enumerate(self.xids, 1)]
        lines += [("fault", *fault) for fault in self.faults]
        held = Path(f"{self._file}.d")
        if any(fault == HANG_D for _, _, fault in self.faults):
            held.touch()
        aside = self.folder / "aside"
        aside.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
        aside.rename(self._file)
        if not any(fault == HANG_D for _, _, fault in self.faults):
            held.unlink(missing_ok=True)

    def break_(self, function: str, card: str, fault: str | int) -> None:
        """From now on, until `mend`."""
        self.faults = [(function, card, str(fault))]
        self.say()

    def mend(self) -> None:
        self.faults = []
        self.say()

    def remove(self) -> None:
        """As where there is no driver."""
        (self.folder / NAME).unlink()
