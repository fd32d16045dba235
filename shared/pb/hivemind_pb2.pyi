import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    NODE_STATE_READY: _ClassVar[NodeState]
    NODE_STATE_DRAINING: _ClassVar[NodeState]
    NODE_STATE_PAUSED: _ClassVar[NodeState]
    NODE_STATE_DEGRADED: _ClassVar[NodeState]

class TaskState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_STATE_UNSPECIFIED: _ClassVar[TaskState]
    TASK_STATE_ACCEPTED: _ClassVar[TaskState]
    TASK_STATE_PREPARING: _ClassVar[TaskState]
    TASK_STATE_RUNNING: _ClassVar[TaskState]
    TASK_STATE_COLLECTING: _ClassVar[TaskState]
    TASK_STATE_SUCCEEDED: _ClassVar[TaskState]
    TASK_STATE_FAILED: _ClassVar[TaskState]
    TASK_STATE_CANCELLED: _ClassVar[TaskState]
    TASK_STATE_TIMED_OUT: _ClassVar[TaskState]
    TASK_STATE_OUT_OF_MEMORY: _ClassVar[TaskState]
    TASK_STATE_OUT_OF_DISK: _ClassVar[TaskState]

class NetworkPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NETWORK_POLICY_UNSPECIFIED: _ClassVar[NetworkPolicy]
    NETWORK_POLICY_NONE: _ClassVar[NetworkPolicy]
    NETWORK_POLICY_EGRESS: _ClassVar[NetworkPolicy]

class Refusal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_UNSPECIFIED: _ClassVar[Refusal]
    REFUSAL_INVALID: _ClassVar[Refusal]
    REFUSAL_TOO_LARGE: _ClassVar[Refusal]
    REFUSAL_BUSY: _ClassVar[Refusal]
    REFUSAL_DRAINING: _ClassVar[Refusal]
    REFUSAL_FORBIDDEN: _ClassVar[Refusal]

class LogStream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOG_STREAM_UNSPECIFIED: _ClassVar[LogStream]
    LOG_STREAM_STDOUT: _ClassVar[LogStream]
    LOG_STREAM_STDERR: _ClassVar[LogStream]
    LOG_STREAM_WORKER: _ClassVar[LogStream]

class FailureCause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_CAUSE_UNSPECIFIED: _ClassVar[FailureCause]
    FAILURE_CAUSE_EXIT: _ClassVar[FailureCause]
    FAILURE_CAUSE_START: _ClassVar[FailureCause]
    FAILURE_CAUSE_IMAGE: _ClassVar[FailureCause]
    FAILURE_CAUSE_INPUT: _ClassVar[FailureCause]
    FAILURE_CAUSE_DEPENDENCIES: _ClassVar[FailureCause]
    FAILURE_CAUSE_INTERRUPTED: _ClassVar[FailureCause]
    FAILURE_CAUSE_REMOVED: _ClassVar[FailureCause]
    FAILURE_CAUSE_NODE: _ClassVar[FailureCause]
NODE_STATE_UNSPECIFIED: NodeState
NODE_STATE_READY: NodeState
NODE_STATE_DRAINING: NodeState
NODE_STATE_PAUSED: NodeState
NODE_STATE_DEGRADED: NodeState
TASK_STATE_UNSPECIFIED: TaskState
TASK_STATE_ACCEPTED: TaskState
TASK_STATE_PREPARING: TaskState
TASK_STATE_RUNNING: TaskState
TASK_STATE_COLLECTING: TaskState
TASK_STATE_SUCCEEDED: TaskState
TASK_STATE_FAILED: TaskState
TASK_STATE_CANCELLED: TaskState
TASK_STATE_TIMED_OUT: TaskState
TASK_STATE_OUT_OF_MEMORY: TaskState
TASK_STATE_OUT_OF_DISK: TaskState
NETWORK_POLICY_UNSPECIFIED: NetworkPolicy
NETWORK_POLICY_NONE: NetworkPolicy
NETWORK_POLICY_EGRESS: NetworkPolicy
REFUSAL_UNSPECIFIED: Refusal
REFUSAL_INVALID: Refusal
REFUSAL_TOO_LARGE: Refusal
REFUSAL_BUSY: Refusal
REFUSAL_DRAINING: Refusal
REFUSAL_FORBIDDEN: Refusal
LOG_STREAM_UNSPECIFIED: LogStream
LOG_STREAM_STDOUT: LogStream
LOG_STREAM_STDERR: LogStream
LOG_STREAM_WORKER: LogStream
FAILURE_CAUSE_UNSPECIFIED: FailureCause
FAILURE_CAUSE_EXIT: FailureCause
FAILURE_CAUSE_START: FailureCause
FAILURE_CAUSE_IMAGE: FailureCause
FAILURE_CAUSE_INPUT: FailureCause
FAILURE_CAUSE_DEPENDENCIES: FailureCause
FAILURE_CAUSE_INTERRUPTED: FailureCause
FAILURE_CAUSE_REMOVED: FailureCause
FAILURE_CAUSE_NODE: FailureCause

class NodeRegistrationRequest(_message.Message):
    __slots__ = ("node_name", "join_token", "certificate_request", "inventory", "worker_version", "protocol_version", "task_endpoint", "wireguard_public_key", "node_id")
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    JOIN_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_FIELD_NUMBER: _ClassVar[int]
    WORKER_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    WIREGUARD_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_name: str
    join_token: str
    certificate_request: bytes
    inventory: NodeInventory
    worker_version: str
    protocol_version: int
    task_endpoint: str
    wireguard_public_key: str
    node_id: str
    def __init__(self, node_name: _Optional[str] = ..., join_token: _Optional[str] = ..., certificate_request: _Optional[bytes] = ..., inventory: _Optional[_Union[NodeInventory, _Mapping]] = ..., worker_version: _Optional[str] = ..., protocol_version: _Optional[int] = ..., task_endpoint: _Optional[str] = ..., wireguard_public_key: _Optional[str] = ..., node_id: _Optional[str] = ...) -> None: ...

class NodeRegistrationResponse(_message.Message):
    __slots__ = ("accepted", "reason", "node_id", "certificate", "certificate_authority", "trust_level", "heartbeat_interval", "report_interval", "vpn")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    TRUST_LEVEL_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    REPORT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    VPN_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    reason: str
    node_id: str
    certificate: bytes
    certificate_authority: bytes
    trust_level: int
    heartbeat_interval: _duration_pb2.Duration
    report_interval: _duration_pb2.Duration
    vpn: VpnAssignment
    def __init__(self, accepted: _Optional[bool] = ..., reason: _Optional[str] = ..., node_id: _Optional[str] = ..., certificate: _Optional[bytes] = ..., certificate_authority: _Optional[bytes] = ..., trust_level: _Optional[int] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., report_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., vpn: _Optional[_Union[VpnAssignment, _Mapping]] = ...) -> None: ...

class VpnAssignment(_message.Message):
    __slots__ = ("address", "server_public_key", "endpoint", "allowed_ips", "dns")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SERVER_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_IPS_FIELD_NUMBER: _ClassVar[int]
    DNS_FIELD_NUMBER: _ClassVar[int]
    address: str
    server_public_key: str
    endpoint: str
    allowed_ips: _containers.RepeatedScalarFieldContainer[str]
    dns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, address: _Optional[str] = ..., server_public_key: _Optional[str] = ..., endpoint: _Optional[str] = ..., allowed_ips: _Optional[_Iterable[str]] = ..., dns: _Optional[_Iterable[str]] = ...) -> None: ...

class NodeInventory(_message.Message):
    __slots__ = ("operating_system", "kernel", "architecture", "cpu_count", "memory_bytes", "disk_bytes", "gpus", "container_engine", "container_runtimes", "cpu_score", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    OPERATING_SYSTEM_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    CPU_COUNT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ENGINE_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_RUNTIMES_FIELD_NUMBER: _ClassVar[int]
    CPU_SCORE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    operating_system: str
    kernel: str
    architecture: str
    cpu_count: int
    memory_bytes: int
    disk_bytes: int
    gpus: _containers.RepeatedCompositeFieldContainer[Gpu]
    container_engine: str
    container_runtimes: _containers.RepeatedScalarFieldContainer[str]
    cpu_score: float
    labels: _containers.ScalarMap[str, str]
    def __init__(self, operating_system: _Optional[str] = ..., kernel: _Optional[str] = ..., architecture: _Optional[str] = ..., cpu_count: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., gpus: _Optional[_Iterable[_Union[Gpu, _Mapping]]] = ..., container_engine: _Optional[str] = ..., container_runtimes: _Optional[_Iterable[str]] = ..., cpu_score: _Optional[float] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Gpu(_message.Message):
    __slots__ = ("uuid", "index", "name", "memory_bytes", "driver_version", "gpu_set")
    UUID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    GPU_SET_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    index: int
    name: str
    memory_bytes: int
    driver_version: str
    gpu_set: str
    def __init__(self, uuid: _Optional[str] = ..., index: _Optional[int] = ..., name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., driver_version: _Optional[str] = ..., gpu_set: _Optional[str] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("node_id", "sequence", "incarnation", "state", "tasks", "sent_at")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    sequence: int
    incarnation: str
    state: NodeState
    tasks: _containers.RepeatedCompositeFieldContainer[TaskRef]
    sent_at: _timestamp_pb2.Timestamp
    def __init__(self, node_id: _Optional[str] = ..., sequence: _Optional[int] = ..., incarnation: _Optional[str] = ..., state: _Optional[_Union[NodeState, str]] = ..., tasks: _Optional[_Iterable[_Union[TaskRef, _Mapping]]] = ..., sent_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("received_at", "reregister", "forget", "desired_state", "channel_open")
    RECEIVED_AT_FIELD_NUMBER: _ClassVar[int]
    REREGISTER_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    DESIRED_STATE_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_OPEN_FIELD_NUMBER: _ClassVar[int]
    received_at: _timestamp_pb2.Timestamp
    reregister: bool
    forget: _containers.RepeatedCompositeFieldContainer[TaskRef]
    desired_state: NodeState
    channel_open: bool
    def __init__(self, received_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reregister: _Optional[bool] = ..., forget: _Optional[_Iterable[_Union[TaskRef, _Mapping]]] = ..., desired_state: _Optional[_Union[NodeState, str]] = ..., channel_open: _Optional[bool] = ...) -> None: ...

class TaskRef(_message.Message):
    __slots__ = ("task_id", "attempt", "state")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    state: TaskState
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., state: _Optional[_Union[TaskState, str]] = ...) -> None: ...

class NodeStatusRequest(_message.Message):
    __slots__ = ("node_id", "state", "to", "average", "peak", "components", "alerts", "reward", "reward_total", "tasks", "reward_bases")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_FIELD_NUMBER: _ClassVar[int]
    PEAK_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    ALERTS_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    REWARD_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    REWARD_BASES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    state: NodeState
    to: _timestamp_pb2.Timestamp
    average: ResourceUsage
    peak: ResourceUsage
    components: _containers.RepeatedCompositeFieldContainer[ComponentStatus]
    alerts: _containers.RepeatedCompositeFieldContainer[Alert]
    reward: int
    reward_total: int
    tasks: _containers.RepeatedCompositeFieldContainer[TaskUsage]
    reward_bases: _containers.RepeatedCompositeFieldContainer[RewardBasis]
    def __init__(self, node_id: _Optional[str] = ..., state: _Optional[_Union[NodeState, str]] = ..., to: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., average: _Optional[_Union[ResourceUsage, _Mapping]] = ..., peak: _Optional[_Union[ResourceUsage, _Mapping]] = ..., components: _Optional[_Iterable[_Union[ComponentStatus, _Mapping]]] = ..., alerts: _Optional[_Iterable[_Union[Alert, _Mapping]]] = ..., reward: _Optional[int] = ..., reward_total: _Optional[int] = ..., tasks: _Optional[_Iterable[_Union[TaskUsage, _Mapping]]] = ..., reward_bases: _Optional[_Iterable[_Union[RewardBasis, _Mapping]]] = ..., **kwargs) -> None: ...

class RewardBasis(_message.Message):
    __slots__ = ("cpu_percent", "memory_percent", "gpu_percent")
    CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    GPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    cpu_percent: float
    memory_percent: float
    gpu_percent: float
    def __init__(self, cpu_percent: _Optional[float] = ..., memory_percent: _Optional[float] = ..., gpu_percent: _Optional[float] = ...) -> None: ...

class NodeStatusResponse(_message.Message):
    __slots__ = ("accepted", "trust_level", "desired_state")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TRUST_LEVEL_FIELD_NUMBER: _ClassVar[int]
    DESIRED_STATE_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    trust_level: int
    desired_state: NodeState
    def __init__(self, accepted: _Optional[bool] = ..., trust_level: _Optional[int] = ..., desired_state: _Optional[_Union[NodeState, str]] = ...) -> None: ...

class ResourceUsage(_message.Message):
    __slots__ = ("cpu_percent", "memory_percent", "memory_used_bytes", "disk_free_bytes", "network_received_bytes", "network_sent_bytes", "load_1m", "pressure_cpu_percent", "pressure_memory_percent", "pressure_io_percent", "gpus")
    CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOAD_1M_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_MEMORY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_IO_PERCENT_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    cpu_percent: float
    memory_percent: float
    memory_used_bytes: int
    disk_free_bytes: int
    network_received_bytes: int
    network_sent_bytes: int
    load_1m: float
    pressure_cpu_percent: float
    pressure_memory_percent: float
    pressure_io_percent: float
    gpus: _containers.RepeatedCompositeFieldContainer[GpuUsage]
    def __init__(self, cpu_percent: _Optional[float] = ..., memory_percent: _Optional[float] = ..., memory_used_bytes: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., network_received_bytes: _Optional[int] = ..., network_sent_bytes: _Optional[int] = ..., load_1m: _Optional[float] = ..., pressure_cpu_percent: _Optional[float] = ..., pressure_memory_percent: _Optional[float] = ..., pressure_io_percent: _Optional[float] = ..., gpus: _Optional[_Iterable[_Union[GpuUsage, _Mapping]]] = ...) -> None: ...

class GpuUsage(_message.Message):
    __slots__ = ("uuid", "utilization_percent", "memory_used_bytes", "temperature_celsius", "power_watts", "reachable", "unknown")
    UUID_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    POWER_WATTS_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    utilization_percent: float
    memory_used_bytes: int
    temperature_celsius: float
    power_watts: float
    reachable: bool
    unknown: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, uuid: _Optional[str] = ..., utilization_percent: _Optional[float] = ..., memory_used_bytes: _Optional[int] = ..., temperature_celsius: _Optional[float] = ..., power_watts: _Optional[float] = ..., reachable: _Optional[bool] = ..., unknown: _Optional[_Iterable[str]] = ...) -> None: ...

class TaskUsage(_message.Message):
    __slots__ = ("task_id", "attempt", "cpu_percent", "memory_used_bytes", "gpus")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    cpu_percent: float
    memory_used_bytes: int
    gpus: _containers.RepeatedCompositeFieldContainer[GpuUsage]
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., cpu_percent: _Optional[float] = ..., memory_used_bytes: _Optional[int] = ..., gpus: _Optional[_Iterable[_Union[GpuUsage, _Mapping]]] = ...) -> None: ...

class ComponentStatus(_message.Message):
    __slots__ = ("name", "state", "restarts", "since")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    restarts: int
    since: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., restarts: _Optional[int] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Alert(_message.Message):
    __slots__ = ("rule", "subject", "value", "threshold", "raised_at", "cleared_at")
    RULE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    RAISED_AT_FIELD_NUMBER: _ClassVar[int]
    CLEARED_AT_FIELD_NUMBER: _ClassVar[int]
    rule: str
    subject: str
    value: float
    threshold: float
    raised_at: _timestamp_pb2.Timestamp
    cleared_at: _timestamp_pb2.Timestamp
    def __init__(self, rule: _Optional[str] = ..., subject: _Optional[str] = ..., value: _Optional[float] = ..., threshold: _Optional[float] = ..., raised_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., cleared_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class NodeMessage(_message.Message):
    __slots__ = ("hello", "assigned", "cancelled")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ASSIGNED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    hello: HeartbeatRequest
    assigned: TaskAssignmentResponse
    cancelled: TaskCancelResponse
    def __init__(self, hello: _Optional[_Union[HeartbeatRequest, _Mapping]] = ..., assigned: _Optional[_Union[TaskAssignmentResponse, _Mapping]] = ..., cancelled: _Optional[_Union[TaskCancelResponse, _Mapping]] = ...) -> None: ...

class MasterMessage(_message.Message):
    __slots__ = ("hello", "assign", "cancel")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ASSIGN_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    hello: HeartbeatResponse
    assign: TaskAssignmentRequest
    cancel: TaskCancelRequest
    def __init__(self, hello: _Optional[_Union[HeartbeatResponse, _Mapping]] = ..., assign: _Optional[_Union[TaskAssignmentRequest, _Mapping]] = ..., cancel: _Optional[_Union[TaskCancelRequest, _Mapping]] = ...) -> None: ...

class TaskAssignmentRequest(_message.Message):
    __slots__ = ("task_id", "attempt", "image", "command", "environment", "secrets", "resources", "timeout", "stop_grace", "priority", "network", "inputs", "requirements", "output_globs", "output_limit_bytes", "log_limit_bytes", "labels", "min_trust_level")
    class EnvironmentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class SecretsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    STOP_GRACE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    REQUIREMENTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_GLOBS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOG_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MIN_TRUST_LEVEL_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    image: str
    command: _containers.RepeatedScalarFieldContainer[str]
    environment: _containers.ScalarMap[str, str]
    secrets: _containers.ScalarMap[str, str]
    resources: Resources
    timeout: _duration_pb2.Duration
    stop_grace: _duration_pb2.Duration
    priority: int
    network: NetworkPolicy
    inputs: _containers.RepeatedCompositeFieldContainer[TaskInput]
    requirements: _containers.RepeatedScalarFieldContainer[str]
    output_globs: _containers.RepeatedScalarFieldContainer[str]
    output_limit_bytes: int
    log_limit_bytes: int
    labels: _containers.ScalarMap[str, str]
    min_trust_level: int
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., image: _Optional[str] = ..., command: _Optional[_Iterable[str]] = ..., environment: _Optional[_Mapping[str, str]] = ..., secrets: _Optional[_Mapping[str, str]] = ..., resources: _Optional[_Union[Resources, _Mapping]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., stop_grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., priority: _Optional[int] = ..., network: _Optional[_Union[NetworkPolicy, str]] = ..., inputs: _Optional[_Iterable[_Union[TaskInput, _Mapping]]] = ..., requirements: _Optional[_Iterable[str]] = ..., output_globs: _Optional[_Iterable[str]] = ..., output_limit_bytes: _Optional[int] = ..., log_limit_bytes: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., min_trust_level: _Optional[int] = ...) -> None: ...

class Resources(_message.Message):
    __slots__ = ("cpus", "memory_bytes", "gpus", "gpu_memory_bytes", "disk_bytes", "processes")
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    cpus: float
    memory_bytes: int
    gpus: int
    gpu_memory_bytes: int
    disk_bytes: int
    processes: int
    def __init__(self, cpus: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., gpus: _Optional[int] = ..., gpu_memory_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., processes: _Optional[int] = ...) -> None: ...

class TaskInput(_message.Message):
    __slots__ = ("path", "size_bytes", "sha256", "inline", "unpack")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    UNPACK_FIELD_NUMBER: _ClassVar[int]
    path: str
    size_bytes: int
    sha256: bytes
    inline: bytes
    unpack: bool
    def __init__(self, path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ..., inline: _Optional[bytes] = ..., unpack: _Optional[bool] = ...) -> None: ...

class TaskAssignmentResponse(_message.Message):
    __slots__ = ("task_id", "attempt", "accepted", "refusal", "reason", "retry_after")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    accepted: bool
    refusal: Refusal
    reason: str
    retry_after: _duration_pb2.Duration
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., accepted: _Optional[bool] = ..., refusal: _Optional[_Union[Refusal, str]] = ..., reason: _Optional[str] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class TaskCancelRequest(_message.Message):
    __slots__ = ("task_id", "attempt", "reason")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    reason: str
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class TaskCancelResponse(_message.Message):
    __slots__ = ("task_id", "attempt", "known", "state")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    known: bool
    state: TaskState
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., known: _Optional[bool] = ..., state: _Optional[_Union[TaskState, str]] = ...) -> None: ...

class TaskStatusRequest(_message.Message):
    __slots__ = ("node_id", "task_id", "attempt", "state", "detail", "at")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    task_id: str
    attempt: int
    state: TaskState
    detail: str
    at: _timestamp_pb2.Timestamp
    def __init__(self, node_id: _Optional[str] = ..., task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., state: _Optional[_Union[TaskState, str]] = ..., detail: _Optional[str] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class TaskStatusResponse(_message.Message):
    __slots__ = ("wanted",)
    WANTED_FIELD_NUMBER: _ClassVar[int]
    wanted: bool
    def __init__(self, wanted: _Optional[bool] = ...) -> None: ...

class TaskLogChunk(_message.Message):
    __slots__ = ("task_id", "attempt", "records", "end")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    records: _containers.RepeatedCompositeFieldContainer[LogRecord]
    end: bool
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., records: _Optional[_Iterable[_Union[LogRecord, _Mapping]]] = ..., end: _Optional[bool] = ...) -> None: ...

class LogRecord(_message.Message):
    __slots__ = ("sequence", "at", "stream", "data")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    at: _timestamp_pb2.Timestamp
    stream: LogStream
    data: bytes
    def __init__(self, sequence: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., stream: _Optional[_Union[LogStream, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class TaskLogAck(_message.Message):
    __slots__ = ("task_id", "attempt", "next_sequence")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    next_sequence: int
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., next_sequence: _Optional[int] = ...) -> None: ...

class TaskInputRequest(_message.Message):
    __slots__ = ("task_id", "attempt", "path", "offset")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    path: str
    offset: int
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., path: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class TaskInputChunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class TaskOutputQuery(_message.Message):
    __slots__ = ("task_id", "attempt", "sha256")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    sha256: bytes
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class TaskOutputChunk(_message.Message):
    __slots__ = ("task_id", "attempt", "sha256", "total_bytes", "offset", "data")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    sha256: bytes
    total_bytes: int
    offset: int
    data: bytes
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., sha256: _Optional[bytes] = ..., total_bytes: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class TaskOutputReceipt(_message.Message):
    __slots__ = ("stored_bytes", "complete")
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    stored_bytes: int
    complete: bool
    def __init__(self, stored_bytes: _Optional[int] = ..., complete: _Optional[bool] = ...) -> None: ...

class TaskResultRequest(_message.Message):
    __slots__ = ("node_id", "task_id", "attempt", "state", "exit_code", "error", "report", "output", "log_records", "reward", "cause")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    LOG_RECORDS_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    task_id: str
    attempt: int
    state: TaskState
    exit_code: int
    error: str
    report: ExecutionReport
    output: OutputArchive
    log_records: int
    reward: int
    cause: FailureCause
    def __init__(self, node_id: _Optional[str] = ..., task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., state: _Optional[_Union[TaskState, str]] = ..., exit_code: _Optional[int] = ..., error: _Optional[str] = ..., report: _Optional[_Union[ExecutionReport, _Mapping]] = ..., output: _Optional[_Union[OutputArchive, _Mapping]] = ..., log_records: _Optional[int] = ..., reward: _Optional[int] = ..., cause: _Optional[_Union[FailureCause, str]] = ...) -> None: ...

class OutputArchive(_message.Message):
    __slots__ = ("sha256", "size_bytes", "files", "format")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    size_bytes: int
    files: int
    format: str
    def __init__(self, sha256: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., files: _Optional[int] = ..., format: _Optional[str] = ...) -> None: ...

class ExecutionReport(_message.Message):
    __slots__ = ("accepted_at", "started_at", "finished_at", "pull_time", "prepare_time", "run_time", "cpu_time", "cpu_percent_average", "memory_peak_bytes", "memory_percent_average", "gpu_percent_average", "network_received_bytes", "network_sent_bytes", "block_read_bytes", "block_written_bytes", "image_digest", "runtime", "gpu_uuids", "oom_kills")
    ACCEPTED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    PULL_TIME_FIELD_NUMBER: _ClassVar[int]
    PREPARE_TIME_FIELD_NUMBER: _ClassVar[int]
    RUN_TIME_FIELD_NUMBER: _ClassVar[int]
    CPU_TIME_FIELD_NUMBER: _ClassVar[int]
    CPU_PERCENT_AVERAGE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PERCENT_AVERAGE_FIELD_NUMBER: _ClassVar[int]
    GPU_PERCENT_AVERAGE_FIELD_NUMBER: _ClassVar[int]
    NETWORK_RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    GPU_UUIDS_FIELD_NUMBER: _ClassVar[int]
    OOM_KILLS_FIELD_NUMBER: _ClassVar[int]
    accepted_at: _timestamp_pb2.Timestamp
    started_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    pull_time: _duration_pb2.Duration
    prepare_time: _duration_pb2.Duration
    run_time: _duration_pb2.Duration
    cpu_time: _duration_pb2.Duration
    cpu_percent_average: float
    memory_peak_bytes: int
    memory_percent_average: float
    gpu_percent_average: float
    network_received_bytes: int
    network_sent_bytes: int
    block_read_bytes: int
    block_written_bytes: int
    image_digest: str
    runtime: str
    gpu_uuids: _containers.RepeatedScalarFieldContainer[str]
    oom_kills: int
    def __init__(self, accepted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., pull_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prepare_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., run_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., cpu_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., cpu_percent_average: _Optional[float] = ..., memory_peak_bytes: _Optional[int] = ..., memory_percent_average: _Optional[float] = ..., gpu_percent_average: _Optional[float] = ..., network_received_bytes: _Optional[int] = ..., network_sent_bytes: _Optional[int] = ..., block_read_bytes: _Optional[int] = ..., block_written_bytes: _Optional[int] = ..., image_digest: _Optional[str] = ..., runtime: _Optional[str] = ..., gpu_uuids: _Optional[_Iterable[str]] = ..., oom_kills: _Optional[int] = ...) -> None: ...

class TaskResultResponse(_message.Message):
    __slots__ = ("acknowledged",)
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    acknowledged: bool
    def __init__(self, acknowledged: _Optional[bool] = ...) -> None: ...
