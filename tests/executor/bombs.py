"""What a hostile command does to use things up, or to outlive its end: each a task of its own.

`phase`: what must become of it, and `says`: what its output must be; both match it whole.
"""

from dataclasses import dataclass, field
from typing import Any

from shared.taskdir import MIB

GROUP = "its control group: memory, processes, CPU"
DISK = "the look at its output, the limit of a file's size, no fallocate()"
LOG = "the keeper: a log with a limit, pipes that never block it"
END = "the keeper: what is left behind dies with the command; stop, hard stop, kill"

LOG_LIMIT_BYTES = 256 * 1024
SHORT = {"timeout_s": 1.5, "stop_grace_s": 0.5}
SMALL = {"memory_bytes": 48 * MIB}


@dataclass(frozen=True)
class Bomb:
    """One of them."""

    wall: str
    what: str
    code: str  # Python
    phase: str = "succeeded"
    says: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


BOMBS = {
    "fork_bomb": Bomb(
        GROUP,
        "forks without end",
        """
        while True:
            try: os.fork()
            except OSError: pass
        """,
        "timed_out|out_of_memory",  # in gVisor a process costs more
        fields=SHORT,
    ),
    "all_pids": Bomb(
        GROUP,
        "takes every process number it can get, and leaves them sleeping",
        """
        for count in itertools.count():
            try:
                if os.fork() == 0: time.sleep(300)
            except OSError: break
        print(count)
        """,
        says="[123][0-9]\n",  # of 32
    ),
    "memory_bomb": Bomb(
        GROUP,
        "takes memory without end",
        "blocks = [b'x' * 2**20 for _ in itertools.count()]",
        "out_of_memory",
        fields=SMALL,
    ),
    "shared_memory_bomb": Bomb(
        GROUP,
        "fills shared memory segments",
        """
        libc = ctypes.CDLL(None)
        libc.shmat.restype = ctypes.c_void_p
        segment = libc.shmget(0, 2**30, 0o1600)
        ctypes.memset(ctypes.c_void_p(libc.shmat(segment, None, 0)), 1, 2**30)
        """,
        "out_of_memory",
        fields=SMALL,
    ),
    "tmp_bomb": Bomb(
        GROUP,
        "fills /tmp and /dev/shm",
        """
        for folder in ("/tmp", "/dev/shm"):
            try:
                for n in itertools.count():
                    with open(f"{folder}/{n}", "wb", 0) as file: file.write(bytes(2**20))
            except OSError as err: print(folder, err.strerror, flush=True)
            for name in os.listdir(folder): os.unlink(f"{folder}/{name}")
        """,
        says="/tmp No space left on device\n/dev/shm No space left on device\n",
    ),
    "tmp_inodes": Bomb(
        GROUP,
        "fills /tmp with empty files",
        "for n in itertools.count(): open(f'/tmp/{n}', 'x')",
        "out_of_memory",
        fields=SMALL,
    ),
    "cpu_bomb": Bomb(
        GROUP,
        "computes without end in many processes",
        """
        for _ in range(3): os.fork()
        while True: pass
        """,
        "timed_out",
        fields={**SHORT, "cpus": 0.2},
    ),
    "file_bomb": Bomb(
        GROUP,
        "opens files, pipes and events without end",
        """
        held = []
        for make in (lambda: os.open("/dev/null", 0), os.pipe, lambda: os.eventfd(0)):
            try:
                while True: held.append(make())
            except OSError as err: print(err.strerror)
        """,
        says="(Too many open files\n){3}",
    ),
    "output_bomb": Bomb(
        DISK,
        "fills /output",
        """
        for n in itertools.count():
            with open(f"/output/{n}", "wb") as file: file.write(bytes(2**20))
        """,
        "out_of_disk",
        fields={"disk_bytes": 16 * MIB},
    ),
    "output_inodes": Bomb(
        DISK,
        "fills /output with empty files and folders",
        """
        for n in itertools.count():
            os.mkdir(f"/output/{n}")
            open(f"/output/{n}/x", "x")
        """,
        "out_of_disk",
        fields={"disk_bytes": 8 * MIB},
    ),
    "set_aside": Bomb(
        DISK,
        "sets disk aside without writing it, which takes the time of a look for all there is",
        """
        libc = ctypes.CDLL(None, use_errno=True)
        for mode in (0, 1):
            libc.fallocate64(os.open(f"/output/{mode}", os.O_CREAT | os.O_RDWR), mode,
                             ctypes.c_int64(0), ctypes.c_int64(2**20))
            print(os.strerror(ctypes.get_errno()))
        os.posix_fallocate(os.open("/output/written", os.O_CREAT | os.O_RDWR), 0, 2**16)
        print(os.stat("/output/written").st_size)
        """,
        says="(Operation not supported\n){2}65536\n",
    ),
    "sparse": Bomb(
        DISK,
        "makes a file of a terabyte without content, then many smaller ones",
        """
        try: os.truncate(os.open("/output/t", os.O_CREAT | os.O_RDWR), 2**40)
        except OSError as err: print(err.strerror, flush=True)
        for n in range(100): os.truncate(os.open(f"/output/{n}", os.O_CREAT | os.O_RDWR), 2**20)
        """,
        "out_of_disk",
        says="File too large\n",
    ),
    "log_bomb": Bomb(
        LOG,
        "prints a hundred megabytes",
        "for _ in range(1000): os.write(1, b'y\\n' * 50_000)",
        says="(y\n)*y?",
        fields={"log_limit_bytes": LOG_LIMIT_BYTES},
    ),
    "tiny_lines": Bomb(
        LOG,
        "prints a million lines, a byte at a time",
        "for _ in range(10**6): os.write(1, b'\\n')",
        says="\n*",
        fields={"log_limit_bytes": LOG_LIMIT_BYTES},
    ),
    "long_line": Bomb(
        LOG,
        "prints a line without end",
        "for _ in range(200): os.write(1, bytes(100_000))",
        says="\0*",
        fields={"log_limit_bytes": LOG_LIMIT_BYTES},
    ),
    "closed": Bomb(
        LOG,
        "closes its output, and runs on",
        "os.closerange(0, 100); time.sleep(0.2); os._exit(0)",
    ),
    "double_fork": Bomb(
        END,
        "leaves daemons behind that ignore every signal",
        """
        for number in set(signal.Signals) - {9, 19}: signal.signal(number, signal.SIG_IGN)
        for _ in range(5):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    open("/output/alive", "w")
                    time.sleep(300)
                os._exit(0)
        while not os.path.exists("/output/alive"): pass
        """,
    ),
    "fork_chain": Bomb(
        END,
        "runs from being killed: each process forks the next and ends",
        """
        while True:
            if os.fork(): os._exit(0)
        """,
    ),
    "deaf": Bomb(
        END,
        "ignores SIGTERM and all else, with daemons beside it",
        """
        for number in set(signal.Signals) - {9, 19}: signal.signal(number, signal.SIG_IGN)
        for _ in range(3):
            if os.fork() == 0: os.setsid()
        while True: time.sleep(1)
        """,
        "timed_out",
        fields=SHORT,
    ),
    "stopped": Bomb(
        END,
        "stops itself, so that no signal reaches it",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "timed_out",
        fields=SHORT,
    ),
}
