"""What a hostile command tries from inside, one function an attack: it returns what it got, or
raises OSError where a wall stopped it.

Runs in the task's container, as `python3 attacks.py TARGETS [BUT…]` with only the standard
library, and is imported by the tests, which judge from outside as well. Bombs are in bombs.py.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

PATIENCE_S = 2.0  # for a host that does not answer, and for an attack that hangs
LIBC = ctypes.CDLL(None, use_errno=True)
NUMBERS = {  # system calls that the C library has no function for
    "x86_64": {
        "io_setup": 206, "add_key": 248, "keyctl": 250, "kexec_load": 246, "init_module": 175,
        "finit_module": 313, "pivot_root": 155, "perf_event_open": 298, "bpf": 321,
        "userfaultfd": 323, "kcmp": 312, "capset": 126, "lookup_dcookie": 212,
    },
    "aarch64": {
        "io_setup": 0, "add_key": 217, "keyctl": 219, "kexec_load": 104, "init_module": 105,
        "finit_module": 273, "pivot_root": 41, "perf_event_open": 241, "bpf": 280,
        "userfaultfd": 282, "kcmp": 272, "capset": 91, "lookup_dcookie": 18,
    },
}  # fmt: skip
NEW_NUMBERS = {"io_uring_setup": 425, "open_tree": 428, "fsopen": 430, "clone3": 435}
ATTACKS: dict[str, "Attack"] = {}


@dataclass(frozen=True)
class Targets:
    """What there is outside, for the attacks to aim at."""

    docker_socket: str
    host_file: str
    other_task: str  # its directory on the host
    addresses: tuple[str, ...]  # of the host: loopback, LAN
    port: int
    abstract_name: str
    shared_memory_key: int


@dataclass(frozen=True)
class Attack:
    """`wall`: what is to stop it; `what`: what it does."""

    wall: str
    what: str
    run: Callable[[Targets], object]


def attack(wall: str, what: str) -> Callable[[Callable[[Targets], object]], None]:
    def note(run: Callable[[Targets], object]) -> None:
        ATTACKS[run.__name__] = Attack(wall, what, run)

    return note


# ------------------------------------------------------------------ means


def call(name: str, *arguments: object) -> int:
    """A function of the C library, or a system call; OSError if it fails."""
    number = {**NUMBERS[platform.machine()], **NEW_NUMBERS}.get(name)
    ctypes.set_errno(0)
    if number is None:
        done = int(getattr(LIBC, name)(*arguments))
    else:
        done = int(LIBC.syscall(number, *arguments))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
    return done


class BlockedError(OSError):
    """Several tries were stopped: the names of their errors."""

    def __str__(self) -> str:
        return str(self.args[0])


def any_of(*tries: Callable[[], object]) -> object:
    """What the first that works gives; else BlockedError."""
    errors = []
    for one in tries:
        try:
            return one()
        except OSError as err:
            errors.append(name_of(err))
    raise BlockedError(", ".join(dict.fromkeys(errors)))


def name_of(err: OSError) -> str:
    if isinstance(err, BlockedError) or err.errno is None:
        return str(err)
    return errno.errorcode.get(err.errno, str(err))


def write(*paths: str, text: bytes = b"hostile") -> object:
    def one(path: str) -> str:
        descriptor = os.open(path, os.O_WRONLY)
        os.write(descriptor, text)
        return path

    return any_of(*(partial(one, path) for path in paths))


def create(*folders: str) -> object:
    def one(folder: str) -> str:
        Path(folder, "hostile").write_text("x")
        return folder

    return any_of(*(partial(one, folder) for folder in folders))


def read(*paths: str) -> object:
    def one(path: str) -> bytes:
        return Path(path).read_bytes()[:100]

    return any_of(*(partial(one, path) for path in paths))


def use_device(*paths: str) -> object:
    return any_of(*(partial(os.open, path, os.O_RDWR) for path in paths))


def connect(*addresses: tuple[str, int]) -> object:
    def one(address: tuple[str, int]) -> str:
        with socket.create_connection(address, PATIENCE_S / len(addresses)):
            return f"connected to {address}"

    return any_of(*(partial(one, address) for address in addresses))


def connect_unix(*names: str) -> object:
    def one(name: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(name)
            return f"connected to {name!r}"

    return any_of(*(partial(one, name) for name in names))


def refused(condition: object, why: str) -> None:
    """The wall that answers without an error."""
    if condition:
        raise BlockedError(why)


# ------------------------------------------------------------------ files

MOUNTS = "a mount namespace with the task's own files only"
READ_ONLY = "a read-only root; input and keeper are read-only"


@attack(MOUNTS, "connects to Docker's socket")
def docker_socket(targets: Targets) -> object:
    return connect_unix("/var/run/docker.sock", "/run/docker.sock", targets.docker_socket)


@attack(MOUNTS, "reads and writes a file of the host by its path")
def host_file(targets: Targets) -> object:
    return any_of(lambda: read(targets.host_file), lambda: write(targets.host_file))


@attack(MOUNTS, "reads another task's files")
def other_task(targets: Targets) -> object:
    beside = [f"{root}/../{name}" for root in ("/output", "/task") for name in ("log", "secrets")]
    return read(*(f"{targets.other_task}/{name}" for name in ("log", "secrets", "spec")), *beside)


@attack(MOUNTS, "leaves through a symbolic link in /output")
def link_in_output(targets: Targets) -> object:
    with suppress(FileExistsError):
        Path("/output/host").symlink_to(targets.host_file)
    return any_of(lambda: read("/output/host"), lambda: write("/output/host"))


@attack(MOUNTS, "makes a hard link to its keeper, or to a file of its input, in /output")
def hard_link(targets: Targets) -> object:
    return any_of(
        lambda: os.link("/.keeper", "/output/keeper"),
        lambda: os.link(__file__, "/output/attacks"),
        lambda: os.link("/etc/hostname", "/output/hostname"),
    )


@attack(READ_ONLY, "writes to /, /etc, /usr and the files that Docker mounts there")
def root_files(targets: Targets) -> object:
    return any_of(
        lambda: create("/", "/etc", "/usr/bin", "/run", "/var", "/root", "/dev"),
        lambda: write("/etc/passwd", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname"),
    )


@attack(READ_ONLY, "changes its input")
def inputs(targets: Targets) -> object:
    return any_of(
        lambda: create("/task"),
        lambda: write(__file__),
        lambda: Path(__file__).rename("/task/x"),
    )


@attack(READ_ONLY, "overwrites the keeper, which all tasks share")
def keeper_file(targets: Targets) -> object:
    return any_of(
        lambda: write("/.keeper"),
        lambda: os.truncate("/.keeper", 0),
        lambda: Path("/.keeper").chmod(0o777),
        lambda: write("/proc/1/exe"),
    )


# ------------------------------------------------------------------ capabilities

CAPABILITIES = "no capability"


@attack(CAPABILITIES, "mounts a file system, /proc again, or a part of the tree elsewhere")
def mount(targets: Targets) -> object:
    return any_of(
        lambda: call("mount", b"x", b"/tmp", b"tmpfs", 0, None),
        lambda: call("mount", b"x", b"/tmp", b"proc", 0, None),
        lambda: call("mount", b"/", b"/tmp", None, 4096, None),
        lambda: call("fsopen", b"tmpfs", 0),
        lambda: call("open_tree", -100, b"/", 1),
    )


@attack(CAPABILITIES, "makes the root writable, and uncovers what is covered in /proc")
def remount(targets: Targets) -> object:
    return any_of(
        lambda: call("mount", None, b"/", None, 32 | 4096, None),
        lambda: call("umount2", b"/proc/kcore", 2),
        lambda: call("umount2", b"/.keeper", 2),
    )


@attack(CAPABILITIES, "mounts a control group to have the host run its release_agent")
def release_agent(targets: Targets) -> object:
    return any_of(
        lambda: call("mount", b"x", b"/tmp", b"cgroup", 0, b"memory"),
        lambda: call("mount", b"x", b"/tmp", b"cgroup2", 0, None),
        lambda: write("/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/release_agent"),
        lambda: create("/sys/fs/cgroup", "/sys/fs/cgroup/memory"),
    )


@attack(CAPABILITIES, "changes its root: chroot, pivot_root")
def chroot(targets: Targets) -> object:
    return any_of(
        lambda: call("chroot", b"/tmp"), lambda: call("pivot_root", b"/tmp", b"/tmp")
    )


@attack(CAPABILITIES, "opens files of the host by their handle")
def open_by_handle(targets: Targets) -> object:
    handle = ctypes.create_string_buffer(
        (8).to_bytes(4, "little") + (1).to_bytes(4, "little") + (2).to_bytes(8, "little")
    )
    descriptor = os.open("/.keeper", os.O_RDONLY)  # of the host's own file system
    return call("open_by_handle_at", descriptor, handle, os.O_RDONLY)


@attack(CAPABILITIES, "makes device nodes")
def make_device(targets: Targets) -> object:
    memory, disk = os.makedev(1, 1), os.makedev(259, 0)
    places = ("/tmp/device", "/output/device", "/dev/shm/device")
    return any_of(
        *(partial(os.mknod, place, stat.S_IFCHR | 0o666, memory) for place in places),
        *(partial(os.mknod, place, stat.S_IFBLK | 0o666, disk) for place in places),
    )


@attack(CAPABILITIES, "becomes root: setuid, setgid, setgroups, capset")
def become_root(targets: Targets) -> object:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    wanted = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
    return any_of(
        lambda: os.setresuid(0, 0, 0),
        lambda: os.setresgid(0, 0, 0),
        lambda: os.setgroups([0]),
        lambda: call("capset", header, wanted),
    )


@attack(CAPABILITIES, "gives files to root, set-user-id")
def give_away(targets: Targets) -> object:
    Path("/tmp/shell").write_bytes(Path("/bin/sh").read_bytes()[:100])
    os.chown("/tmp/shell", 0, 0)
    return "chown"


@attack(CAPABILITIES, "sets the clock")
def clock(targets: Targets) -> object:
    at = (ctypes.c_int64 * 2)(int(time.time()) - 3600, 0)
    return any_of(
        lambda: time.clock_settime(time.CLOCK_REALTIME, time.time() - 3600),
        lambda: call("settimeofday", at, None),
    )


@attack(CAPABILITIES, "sets the host's name")
def host_name(targets: Targets) -> object:
    return any_of(
        lambda: call("sethostname", b"hostile", 7),
        lambda: call("setdomainname", b"hostile", 7),
        lambda: write("/proc/sys/kernel/hostname"),
    )


@attack(CAPABILITIES, "loads a module, or another kernel")
def module(targets: Targets) -> object:
    return any_of(
        lambda: call("init_module", b"x", 1, b""),
        lambda: call("finit_module", 0, b"", 0),
        lambda: call("delete_module", b"ext4", 0),
        lambda: call("kexec_load", 0, 0, None, 0),
    )


@attack(CAPABILITIES, "switches the machine off")
def reboot(targets: Targets) -> object:
    return any_of(lambda: call("reboot", 0x89ABCDEF), lambda: call("reboot", 0x4321FEDC))


@attack(CAPABILITIES, "turns on swap, accounting, quotas")
def accounting(targets: Targets) -> object:
    Path("/output/swap").write_bytes(bytes(65536))
    return any_of(
        lambda: call("swapon", b"/output/swap", 0),
        lambda: call("acct", b"/output/swap"),
        lambda: call("quotactl", 0x80000200, b"/dev/vda", 0, None),
    )


@attack(CAPABILITIES, "uses I/O ports")
def io_ports(targets: Targets) -> object:
    refused(platform.machine() != "x86_64", "there are none")
    return any_of(lambda: call("iopl", 3), lambda: call("ioperm", 0x70, 2, 1))


@attack(CAPABILITIES, "takes a priority above others': nice, real time, oom_score_adj")
def priority(targets: Targets) -> object:
    return any_of(
        lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
        lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
        lambda: write("/proc/self/oom_score_adj", text=b"-1"),  # the worker's own is 0
    )


@attack(CAPABILITIES, "raises its own limits of files and locked memory")
def limits(targets: Targets) -> object:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return any_of(
        lambda: _raise(resource.RLIMIT_NOFILE, most),
        lambda: _raise(resource.RLIMIT_MEMLOCK, locked),
    )


def _raise(which: int, most: int) -> str:
    refused(most == resource.RLIM_INFINITY, "it has none")
    try:
        resource.setrlimit(which, (most + 1, most + 1))
    except ValueError as err:
        raise OSError(errno.EPERM, str(err)) from err
    return f"{which} is {most + 1}"


@attack(CAPABILITIES, "reads packets, forges packets, changes addresses")
def raw_socket(targets: Targets) -> object:
    return any_of(
        lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300),
        lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58),
    )


# ------------------------------------------------------------------ system calls

SECCOMP = "seccomp: Docker's default profile, and the keeper's own filter"


@attack(SECCOMP, "makes a user namespace, in which it would be root")
def user_namespace(targets: Targets) -> object:
    new_user, new_mount = 0x10000000, 0x00020000
    arguments = (ctypes.c_uint64 * 8)(new_user, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    return any_of(
        lambda: call("unshare", new_user | new_mount),
        lambda: call("unshare", new_user),
        lambda: _in_child_only(call("clone3", arguments, 64)),
    )


def _in_child_only(pid: int) -> int:
    if pid == 0:
        os._exit(0)
    return pid


@attack(SECCOMP, "enters the namespaces of its keeper, or makes others")
def namespaces(targets: Targets) -> object:
    return any_of(
        lambda: call("setns", os.open("/proc/1/ns/mnt", os.O_RDONLY), 0),
        lambda: call("unshare", 0x00020000),
        lambda: call("unshare", 0x40000000),
        lambda: call("unshare", 0x20000000),
    )


@attack(SECCOMP, "uses the kernel's key rings, which no namespace divides")
def key_rings(targets: Targets) -> object:
    return any_of(
        lambda: call("add_key", b"user", b"hostile", b"x", 1, -4),
        lambda: call("keyctl", 0, -3, 1),
    )


@attack(SECCOMP, "loads a BPF program")
def bpf(targets: Targets) -> object:
    return call("bpf", 0, (ctypes.c_uint32 * 18)(1, 4, 4, 1), 72)


@attack(SECCOMP, "watches the kernel with perf")
def perf(targets: Targets) -> object:
    event = (ctypes.c_uint32 * 32)(1, 128)
    return any_of(
        lambda: call("perf_event_open", event, 0, -1, -1, 0),
        lambda: call("perf_event_open", event, -1, 0, -1, 0),
    )


@attack(SECCOMP, "handles page faults itself (userfaultfd)")
def user_faults(targets: Targets) -> object:
    return any_of(lambda: call("userfaultfd", 0), lambda: call("userfaultfd", 1))


@attack(SECCOMP, "uses io_uring, which no seccomp profile looks into")
def io_uring(targets: Targets) -> object:
    return call("io_uring_setup", 4, (ctypes.c_uint32 * 30)())


@attack(SECCOMP, "takes all of the machine's slots for asynchronous I/O")
def aio_slots(targets: Targets) -> object:
    return call("io_setup", 60000, ctypes.byref(ctypes.c_uint64(0)))


@attack(SECCOMP, "speaks to the hypervisor (vsock), which no network namespace divides")
def hypervisor(targets: Targets) -> object:
    return socket.socket(40, socket.SOCK_STREAM)


@attack(SECCOMP, "uses the kernel's ciphers (AF_ALG) and other rare sockets")
def rare_sockets(targets: Targets) -> object:
    families = (38, 31, 29, 21, 16 + 26, 9, 30)  # ALG, BLUETOOTH, CAN, RDS, KCM, X25, TIPC
    return any_of(*(partial(_any_type, family) for family in families))


def _any_type(family: int) -> object:
    kinds = (socket.SOCK_SEQPACKET, socket.SOCK_RAW, socket.SOCK_DGRAM)
    return any_of(*(partial(socket.socket, family, kind) for kind in kinds))


@attack(SECCOMP, "switches off the randomness of addresses, makes data executable")
def personality(targets: Targets) -> object:
    return any_of(
        lambda: call("personality", 0x0040000), lambda: call("personality", 0x0400000)
    )


@attack(SECCOMP, "types into a terminal (TIOCSTI)")
def terminal(targets: Targets) -> object:
    def one(path: str) -> int:
        return call("ioctl", os.open(path, os.O_RDWR | os.O_NOCTTY), 0x5412, b"x")

    return any_of(*(partial(one, path) for path in ("/dev/tty", "/dev/console", "/dev/tty1")))


# ------------------------------------------------------------------ /proc, /sys, /dev

COVERED = "Docker's read-only and covered parts of /proc and /sys"
DEVICES = "no device but the harmless ones"


@attack(COVERED, "asks for a crash of the machine through sysrq")
def sysrq(targets: Targets) -> object:
    return write("/proc/sysrq-trigger", text=b"h")


@attack(COVERED, "has the kernel run a program of its own: core_pattern, modprobe, uevent_helper")
def kernel_helpers(targets: Targets) -> object:
    names = ("kernel/core_pattern", "kernel/modprobe", "kernel/hotplug")
    return write(
        *(f"/proc/sys/{name}" for name in names),
        "/sys/kernel/uevent_helper",
        "/proc/sys/fs/binfmt_misc/register",
        text=b"|/bin/sh",
    )


@attack(COVERED, "changes settings of the kernel")
def kernel_settings(targets: Targets) -> object:
    names = ("vm/overcommit_memory", "kernel/pid_max", "fs/file-max", "net/ipv4/ip_forward")
    return write(
        *(f"/proc/sys/{name}" for name in names),
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/power/state",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory.max",
        text=b"1",
    )


@attack(COVERED, "lifts its own limits through its control group")
def own_group(targets: Targets) -> object:
    controllers = ("memory/memory.limit_in_bytes", "pids/pids.max", "cpu/cpu.cfs_quota_us")
    return write(
        *(f"/sys/fs/cgroup/{name}" for name in controllers),
        "/sys/fs/cgroup/pids.max",
        "/sys/fs/cgroup/cgroup.procs",
        text=b"-1",
    )


@attack(COVERED, "reads the kernel's memory and its ring buffer")
def kernel_memory(targets: Targets) -> object:
    return any_of(
        lambda: read("/dev/kmsg", "/dev/mem", "/dev/port"),
        lambda: _not_empty("/proc/kcore"),
        lambda: _not_empty("/proc/keys"),
        lambda: _not_empty("/proc/timer_list"),
        lambda: call("klogctl", 3, ctypes.create_string_buffer(64), 64),
    )


def _not_empty(path: str) -> bytes:
    """Covered by an empty file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    content = os.read(descriptor, 16)
    refused(not content, "it is empty")
    return content


@attack(COVERED, "learns the addresses of the kernel")
def kernel_addresses(targets: Targets) -> object:
    with Path("/proc/kallsyms").open("rb") as symbols:
        line = symbols.readline()
    refused(int(line.split()[0], 16) == 0 if line else True, "they are zero")
    return line


@attack(DEVICES, "opens disks, kvm, fuse, tun, memory")
def devices(targets: Targets) -> object:
    names = ("vda", "sda", "nvme0n1", "loop0", "kvm", "fuse", "net/tun", "mem", "port", "vsock")
    return use_device(*(f"/dev/{name}" for name in names), "/dev/loop-control", "/dev/vfio/vfio")


# ------------------------------------------------------------------ network, other processes

NETWORK = "a network namespace of its own, empty"
NAMESPACES = "process, IPC and host-name namespaces of its own"
NO_NEW_PRIVILEGES = "no-new-privileges"


@attack(NETWORK, "reaches services on the host's loopback and other addresses")
def host_services(targets: Targets) -> object:
    return connect(*((address, targets.port) for address in targets.addresses))


@attack(NETWORK, "reaches the LAN, Docker's gateway and the internet")
def lan(targets: Targets) -> object:
    hosts = ("172.17.0.1", "192.168.0.1", "10.0.0.1", "1.1.1.1", "fe80::1")
    return connect(*((host, 53) for host in hosts))


@attack(NETWORK, "asks the cloud's metadata service for credentials")
def metadata(targets: Targets) -> object:
    return connect(("169.254.169.254", 80), ("fd00:ec2::254", 80))


@attack(NETWORK, "reaches a unix socket of the host by its abstract name")
def abstract_socket(targets: Targets) -> object:
    return connect_unix(f"\0{targets.abstract_name}")


@attack(NAMESPACES, "sees processes of the host or of other tasks")
def other_processes(targets: Targets) -> object:
    seen = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    strangers = [pid for pid in seen if pid != 1 and not _is_ours(pid)]
    refused(not strangers, "there are only its own")
    return strangers


def _is_ours(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}").stat().st_uid == os.getuid()
    except OSError:
        return True  # gone meanwhile


@attack(NAMESPACES, "attaches the host's shared memory")
def shared_memory(targets: Targets) -> object:
    return call("shmget", targets.shared_memory_key, 0, 0)


@attack(NAMESPACES, "kills the first process, and all that it can see")
def kill_all(targets: Targets) -> object:
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGPWR):
        os.kill(1, number)
    time.sleep(0.05)
    refused(Path("/proc/1/stat").exists(), "its keeper is still there")
    return "killed"


@attack(NO_NEW_PRIVILEGES, "runs set-user-id programs, its own too")
def set_user_id(targets: Targets) -> object:
    refused(call("prctl", 39, 0, 0, 0, 0) == 1, "it runs without new privileges")
    return "NoNewPrivs is not set"


# ------------------------------------------------------------------ the keeper

KEEPER = "the keeper: not dumpable, and the claim is taken away"


@attack(KEEPER, "traces its keeper, reads and writes its memory")
def trace(targets: Targets) -> object:
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 8)
    remote = (ctypes.c_uint64 * 2)(0x400000, 8)
    return any_of(
        lambda: call("ptrace", 16, 1, 0, 0),
        lambda: os.open("/proc/1/mem", os.O_RDWR),
        lambda: read("/proc/1/environ", "/proc/1/maps"),
        lambda: call("process_vm_readv", 1, vector, 1, ctypes.byref(remote), 1, 0),
        lambda: call("kcmp", os.getpid(), 1, 0, 0, 0),
    )


@attack(KEEPER, "opens its keeper's files: log, record, pipes")
def keeper_descriptors(targets: Targets) -> object:
    places = ("fd/0", "fd/1", "fd/2", "fd/3", "fd/4", "fd/5", "root/etc/passwd", "cwd")
    return any_of(
        *(partial(os.open, f"/proc/1/{place}", os.O_RDWR) for place in places),
        lambda: list(Path("/proc/1/fd").iterdir()),
    )


@attack(KEEPER, "forges its record and log in the claim, or fills the disk through it")
def claim(targets: Targets) -> object:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:  # until it is sealed; what was written before is removed
        for name in ("run", "log", "start"):
            Path("/.hivemind", name).write_text("ended unix_ns=1 monotonic_ns=1 code=7 signal=0")
        time.sleep(0.01)
    return "it can still write there"


# ------------------------------------------------------------------ running them


def outcome(run: Callable[[Targets], object], targets: Targets) -> str:
    """In a child of its own: an attack may end, hang or cripple it."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        os.write(writes, _try(run, targets).encode()[:1000])
        os._exit(0)
    os.close(writes)
    ready, _, _ = select.select([reads], [], [], PATIENCE_S * 3)
    said = os.read(reads, 1000).decode() if ready else "blocked: it hangs"
    os.close(reads)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return said or f"blocked: killed by signal {os.WTERMSIG(status)}"


def _try(run: Callable[[Targets], object], targets: Targets) -> str:
    try:
        return f"SUCCEEDED: {run(targets)!r}"
    except OSError as err:
        return f"blocked: {name_of(err)}"


def main(targets: Targets, but: list[str]) -> None:
    signal.signal(signal.SIGPWR, signal.SIG_IGN)  # its keeper passes it on to it
    for name, one in ATTACKS.items():
        if name not in but:
            print(json.dumps({"name": name, "outcome": outcome(one.run, targets)}), flush=True)


if __name__ == "__main__":
    main(Targets(**json.loads(sys.argv[1])), sys.argv[2:])
