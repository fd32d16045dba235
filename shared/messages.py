"""Every message that travels between processes, and nothing else.

Rules for this file:
- A message is a STATE, the whole truth of its topic; the tag is the topic and never changes.
- New fields go last and have a default, so old and new processes can talk.
- Every field has a default: a process beats, unsynced, before it knows anything.
- Units are in the field name: _s, _bytes, _pct, _w, _c; wall clock only as _unix_s.
"""

from enum import StrEnum

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Base of every message.

    `at_s` is the publisher's monotonic clock, the same for the whole machine. `synced` is
    False until the publisher knows what it speaks of: such a message says only "I live".
    """

    at_s: float
    synced: bool = True

    @property
    def topic(self) -> str:
        return str(self.__struct_config__.tag)


# ------------------------------------------------------------------ tasks


class TaskPhase(StrEnum):
    """Where an attempt stands; the values are the contract's task states in lower case."""

    ACCEPTED = "accepted"
    PREPARING = "preparing"
    RUNNING = "running"
    COLLECTING = "collecting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    OUT_OF_DISK = "out_of_disk"

    @property
    def is_final(self) -> bool:
        return self not in (
            TaskPhase.ACCEPTED,
            TaskPhase.PREPARING,
            TaskPhase.RUNNING,
            TaskPhase.COLLECTING,
        )


class StopReason(StrEnum):
    """Why an attempt that is held should end."""

    CANCELLED = "cancelled"  # the master asked
    SUPERSEDED = "superseded"  # a higher attempt of the same task came
    FORGOTTEN = "forgotten"  # the master has recorded its end: deliver nothing
    OWNER = "owner"  # the machine's owner stopped it


class WantedTask(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that this node should hold; `stop` names why it should end."""

    task_id: str
    attempt: int
    stop: StopReason | None = None
    stop_detail: str = ""


class TaskWant(Message, frozen=True, tag="task.want"):
    """Every attempt this node should hold. One that is not named should be let go."""

    tasks: tuple[WantedTask, ...] = ()


class PhaseAt(msgspec.Struct, frozen=True, kw_only=True):
    """When a phase was entered."""

    phase: TaskPhase
    at_unix_s: float


class TaskUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a running task uses: CPU in percent of what it was granted, memory of its cgroup.

    Block and network bytes are those since it began; `disk_bytes` is what lies in its output,
    at the last look. Throttled: the share of its CPU periods in which its grant ran out.
    """

    cpu_pct: float = 0.0
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    cpu_throttled_pct: float = 0.0
    block_read_bytes: int = 0
    block_written_bytes: int = 0
    network_received_bytes: int = 0
    network_sent_bytes: int = 0
    disk_bytes: int = 0
    disk_limit_bytes: int = 0


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold that is passed, or was."""

    rule: str
    subject: str
    value: float
    threshold: float
    raised_unix_s: float
    cleared_unix_s: float | None = None


class HeldTask(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that the executor holds. `directory` is its name below `tasks/`."""

    task_id: str
    attempt: int
    phase: TaskPhase
    directory: str
    phases: tuple[PhaseAt, ...] = ()
    detail: str = ""
    use: TaskUse | None = None
    image: str = ""
    command: tuple[str, ...] = ()
    alerts: tuple[Alert, ...] = ()
    gpus: tuple[str, ...] = ()  # UUIDs of the cards that are its alone


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """Docker as the executor sees it; `detail` says why it is not `available`."""

    available: bool = False
    detail: str = ""
    version: str = ""
    runtimes: tuple[str, ...] = ()
    disk_free_bytes: int = 0  # where its images lie; no total: on the home's file system
    disk_total_bytes: int = 0


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What one task may ask for at most, and how many tasks may be held."""

    cpus: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    gpus: int = 0
    max_held: int = 0
    disk_full: bool = False
    trust_level: int = 0  # the one that it was computed for
    gpu_memory_bytes: tuple[int, ...] = ()  # of each healthy card, the largest first
    gpus_known: bool = True  # False: a monitor of GPUs has not spoken yet
    gpus_lost: int = 0  # cards that it has, and can't give at the moment


class TaskState(Message, frozen=True, tag="task.state"):
    """Every attempt this node holds, and what it could take."""

    engine: Engine = Engine()
    tasks: tuple[HeldTask, ...] = ()
    capacity: Capacity = Capacity()
    cpu_weight_pct: float | None = None  # of all tasks together, of the normal; None: not set here
    alerts: tuple[Alert, ...] = ()  # of the engine, not of a task
    cleared: tuple[Alert, ...] = ()  # lately


# ------------------------------------------------------------------ the node


class NodePhase(StrEnum):
    """The node's state as the contract names it; later ones in this list win over earlier."""

    READY = "ready"
    DEGRADED = "degraded"
    DRAINING = "draining"
    PAUSED = "paused"


class LinkPhase(StrEnum):
    """How far the link to the master has come."""

    UNCONFIGURED = "unconfigured"
    DISCOVERING = "discovering"
    REGISTERING = "registering"
    CONNECTED = "connected"
    WAITING = "waiting"  # between two tries, or for approval


class LinkState(Message, frozen=True, tag="link.state"):
    """The link to the master, the node's state, and what waits to be delivered."""

    phase: LinkPhase = LinkPhase.UNCONFIGURED
    detail: str = ""
    master_url: str = ""
    node_id: str = ""
    node_name: str = ""
    node_state: NodePhase = NodePhase.READY
    node_state_reason: str = ""
    trust_level: int = 0
    heartbeat_acked_unix_s: float = 0.0
    undelivered_tasks: int = 0
    unacknowledged_reports: int = 0
    reward_last: int = 0
    reward_total: int = 0
    warnings: tuple[str, ...] = ()  # what the owner should see to
    authority_digest: str = ""  # of the master's authority that is trusted
    certificate_until_unix_s: float = 0.0  # the node's own


class OwnerWant(Message, frozen=True, tag="owner.want"):
    """What the machine's owner wants of it."""

    wish: NodePhase = NodePhase.READY  # ready, draining or paused
    stopped_tasks: tuple[str, ...] = ()  # directory names, "<task>.<attempt>"
    tunnel_key_after_unix_s: float = 0.0  # an older key of the tunnel is to be replaced


class ProcessInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One supervised program. `state` is supervisor's own word: RUNNING, EXITED, …"""

    name: str
    state: str
    pid: int = 0
    restarts: int = 0
    since_unix_s: float = 0.0
    detail: str = ""


class ProcessState(Message, frozen=True, tag="process.state"):
    """Each supervised program; `alerts` names those that restart too often."""

    processes: tuple[ProcessInfo, ...] = ()
    alerts: tuple[str, ...] = ()


# ------------------------------------------------------------------ the tunnel


class Tunnel(msgspec.Struct, frozen=True, kw_only=True):
    """The tunnel that the master assigned to this node."""

    address: str = ""
    server_public_key: str = ""
    endpoint: str = ""
    allowed_ips: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()


class VpnWant(Message, frozen=True, tag="vpn.want"):
    """The tunnel that the master assigned; None once synced: it has none for us."""

    tunnel: Tunnel | None = None
    public_key: str = ""  # of this node's end, as the master was told it before it said this


class VpnPhase(StrEnum):
    """The tunnel as it is."""

    OFF = "off"  # VPN=off
    NONE = "none"  # the master has no VPN
    WAITING = "waiting"  # no word from the master yet
    UP = "up"
    DOWN = "down"


class VpnState(Message, frozen=True, tag="vpn.state"):
    """The tunnel as it is, and the task networks whose firewall is in force.

    UP: the other end has proven itself by a handshake. While the key is changed, `public_key` is
    the new one already, and the tunnel still runs with the old one until the master knows it.
    """

    phase: VpnPhase = VpnPhase.WAITING
    detail: str = ""
    interface: str = ""
    address: str = ""
    handshake_unix_s: float = 0.0
    covered_bridges: tuple[str, ...] = ()
    resolvers: tuple[str, ...] = ()  # those that the firewall lets tasks reach
    public_key: str = ""  # of this node's end, as the master should know it; empty: no tunnel
    key_is_owners: bool = False  # the configuration is the owner's own: the worker changes nothing


# ------------------------------------------------------------------ measured


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine is; it changes only with its hardware."""

    operating_system: str = ""
    kernel: str = ""
    architecture: str = ""
    cpu_count: int = 0
    memory_bytes: int = 0
    cpu_score: float = 0.0  # of one core, higher is faster; 0: not measured yet


class HostLoad(Message, frozen=True, tag="host.load"):
    """What the machine uses. Percentages are of the whole machine; network counters only grow.

    What the tasks have is part of what is used; the rest is the owner's.
    """

    inventory: Inventory = Inventory()
    cpu_pct: float = 0.0
    memory_pct: float = 0.0
    memory_used_bytes: int = 0
    swap_pct: float = 0.0
    disk_free_bytes: int = 0
    disk_total_bytes: int = 0
    network_received_bytes: int = 0
    network_sent_bytes: int = 0
    load_1m: float = 0.0
    pressure_cpu_pct: float | None = None  # None: the kernel has no PSI
    pressure_memory_pct: float | None = None
    pressure_io_pct: float | None = None
    alerts: tuple[Alert, ...] = ()
    cleared: tuple[Alert, ...] = ()  # lately
    cores_pct: tuple[int, ...] = ()  # of each, in the kernel's order
    tasks_cpu_pct: float | None = None  # None: the kernel does not say
    tasks_memory_bytes: int | None = None
    temperature_c: float | None = None  # of the CPU, where it is hottest; None: no sensor


class GpuProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process that computes on a card. None: the driver does not say how much memory it has."""

    pid: int
    memory_bytes: int | None = None


class GpuSample(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of one GPU, or of a MIG instance (`mig_of` is then its card's UUID).

    None where the card does not report a figure. `reachable` is False where the card can't be
    used now: its figures are None or old, and `reason` says why. ECC errors are those since the
    driver was loaded.
    """

    index: int
    uuid: str
    name: str
    reachable: bool = True
    reason: str = ""
    util_pct: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int = 0
    temperature_c: float | None = None
    power_w: float | None = None
    driver_version: str = ""
    clock_sm_mhz: int | None = None
    clock_memory_mhz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None  # why its clocks are held back
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    xid: int | None = None  # the last error that the driver told of while we watched
    processes: tuple[GpuProcess, ...] | None = None
    is_split: bool = False  # MIG is on: its instances compute, the card as a whole does not
    mig_of: str = ""

    @property
    def is_whole(self) -> bool:
        """A card that computes as one: what a task may have."""
        return not self.is_split and not self.mig_of


class GpuLoad(Message, frozen=True, tag="gpu.load"):
    """What one monitor sees on its set of GPUs."""

    gpu_set: str = ""
    gpus: tuple[GpuSample, ...] = ()
    alerts: tuple[Alert, ...] = ()
    reason: str = ""  # why nothing can be read of the whole set
    cleared: tuple[Alert, ...] = ()  # lately

    def reason_of(self, alert: Alert) -> str:
        """Why the card is lost that the alert is of, or all of the set; empty: it is another's."""
        found = {gpu.uuid: gpu.reason for gpu in self.gpus} | {self.gpu_set: self.reason}
        return found.get(alert.subject, "") if alert.rule == "gpu_lost" else ""


MESSAGES: dict[str, type[Message]] = {
    str(m.__struct_config__.tag): m
    for m in (
        TaskWant,
        TaskState,
        LinkState,
        VpnWant,
        VpnState,
        HostLoad,
        GpuLoad,
        OwnerWant,
        ProcessState,
    )
}
