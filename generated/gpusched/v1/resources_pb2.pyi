from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Placement(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PLACEMENT_UNSPECIFIED: _ClassVar[Placement]
    PLACEMENT_PACK: _ClassVar[Placement]
    PLACEMENT_SPREAD: _ClassVar[Placement]
    PLACEMENT_CONSOLIDATE: _ClassVar[Placement]

class GpuState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GPU_STATE_UNSPECIFIED: _ClassVar[GpuState]
    GPU_STATE_FREE: _ClassVar[GpuState]
    GPU_STATE_ALLOCATED: _ClassVar[GpuState]
    GPU_STATE_DIRTY: _ClassVar[GpuState]
    GPU_STATE_FOREIGN: _ClassVar[GpuState]
    GPU_STATE_UNHEALTHY: _ClassVar[GpuState]
    GPU_STATE_DRAINED: _ClassVar[GpuState]
    GPU_STATE_CHECKING: _ClassVar[GpuState]
PLACEMENT_UNSPECIFIED: Placement
PLACEMENT_PACK: Placement
PLACEMENT_SPREAD: Placement
PLACEMENT_CONSOLIDATE: Placement
GPU_STATE_UNSPECIFIED: GpuState
GPU_STATE_FREE: GpuState
GPU_STATE_ALLOCATED: GpuState
GPU_STATE_DIRTY: GpuState
GPU_STATE_FOREIGN: GpuState
GPU_STATE_UNHEALTHY: GpuState
GPU_STATE_DRAINED: GpuState
GPU_STATE_CHECKING: GpuState

class ResourceRequest(_message.Message):
    __slots__ = ("gpus", "gpu_memory_bytes", "gpu_model", "node", "nodes", "gpu_ids", "exclude", "labels", "gpus_per_node", "placement", "shared", "cpus", "memory_bytes")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    GPUS_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_MODEL_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    GPU_IDS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    GPUS_PER_NODE_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    gpus: int
    gpu_memory_bytes: int
    gpu_model: str
    node: str
    nodes: _containers.RepeatedScalarFieldContainer[str]
    gpu_ids: _containers.RepeatedScalarFieldContainer[str]
    exclude: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.ScalarMap[str, str]
    gpus_per_node: int
    placement: Placement
    shared: bool
    cpus: int
    memory_bytes: int
    def __init__(self, gpus: _Optional[int] = ..., gpu_memory_bytes: _Optional[int] = ..., gpu_model: _Optional[str] = ..., node: _Optional[str] = ..., nodes: _Optional[_Iterable[str]] = ..., gpu_ids: _Optional[_Iterable[str]] = ..., exclude: _Optional[_Iterable[str]] = ..., labels: _Optional[_Mapping[str, str]] = ..., gpus_per_node: _Optional[int] = ..., placement: _Optional[_Union[Placement, str]] = ..., shared: bool = ..., cpus: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class GpuProcess(_message.Message):
    __slots__ = ("pid", "user", "command", "memory_bytes", "job_id")
    PID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    pid: int
    user: str
    command: str
    memory_bytes: int
    job_id: str
    def __init__(self, pid: _Optional[int] = ..., user: _Optional[str] = ..., command: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., job_id: _Optional[str] = ...) -> None: ...

class GpuShare(_message.Message):
    __slots__ = ("job_id", "user", "memory_bytes", "memory_used_bytes")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    user: str
    memory_bytes: int
    memory_used_bytes: int
    def __init__(self, job_id: _Optional[str] = ..., user: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ...) -> None: ...

class Gpu(_message.Message):
    __slots__ = ("uuid", "index", "node", "model", "memory_bytes", "state", "message", "drained", "job_id", "user", "memory_used_bytes", "utilization_percent", "temperature_celsius", "power_watts", "processes", "observed_at", "simulated", "numa_node", "parent_index", "labels", "shares", "memory_left_bytes")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    UUID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    POWER_WATTS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_AT_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    NUMA_NODE_FIELD_NUMBER: _ClassVar[int]
    PARENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LEFT_BYTES_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    index: int
    node: str
    model: str
    memory_bytes: int
    state: GpuState
    message: str
    drained: bool
    job_id: str
    user: str
    memory_used_bytes: int
    utilization_percent: int
    temperature_celsius: int
    power_watts: float
    processes: _containers.RepeatedCompositeFieldContainer[GpuProcess]
    observed_at: _timestamp_pb2.Timestamp
    simulated: bool
    numa_node: int
    parent_index: int
    labels: _containers.ScalarMap[str, str]
    shares: _containers.RepeatedCompositeFieldContainer[GpuShare]
    memory_left_bytes: int
    def __init__(self, uuid: _Optional[str] = ..., index: _Optional[int] = ..., node: _Optional[str] = ..., model: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., state: _Optional[_Union[GpuState, str]] = ..., message: _Optional[str] = ..., drained: bool = ..., job_id: _Optional[str] = ..., user: _Optional[str] = ..., memory_used_bytes: _Optional[int] = ..., utilization_percent: _Optional[int] = ..., temperature_celsius: _Optional[int] = ..., power_watts: _Optional[float] = ..., processes: _Optional[_Iterable[_Union[GpuProcess, _Mapping]]] = ..., observed_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., simulated: bool = ..., numa_node: _Optional[int] = ..., parent_index: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., shares: _Optional[_Iterable[_Union[GpuShare, _Mapping]]] = ..., memory_left_bytes: _Optional[int] = ...) -> None: ...

class GpuLinks(_message.Message):
    __slots__ = ("scores",)
    SCORES_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, scores: _Optional[_Iterable[int]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("name", "gpus_total", "gpus_allocated", "gpus_free", "drained", "labels", "last_seen_at", "driver_version", "local", "links", "cpus_total", "cpus_free", "memory_total_bytes", "memory_free_bytes")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    GPUS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    GPUS_ALLOCATED_FIELD_NUMBER: _ClassVar[int]
    GPUS_FREE_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_AT_FIELD_NUMBER: _ClassVar[int]
    DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    CPUS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CPUS_FREE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    gpus_total: int
    gpus_allocated: int
    gpus_free: int
    drained: bool
    labels: _containers.ScalarMap[str, str]
    last_seen_at: _timestamp_pb2.Timestamp
    driver_version: str
    local: bool
    links: _containers.RepeatedCompositeFieldContainer[GpuLinks]
    cpus_total: int
    cpus_free: int
    memory_total_bytes: int
    memory_free_bytes: int
    def __init__(self, name: _Optional[str] = ..., gpus_total: _Optional[int] = ..., gpus_allocated: _Optional[int] = ..., gpus_free: _Optional[int] = ..., drained: bool = ..., labels: _Optional[_Mapping[str, str]] = ..., last_seen_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., driver_version: _Optional[str] = ..., local: bool = ..., links: _Optional[_Iterable[_Union[GpuLinks, _Mapping]]] = ..., cpus_total: _Optional[int] = ..., cpus_free: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., memory_free_bytes: _Optional[int] = ...) -> None: ...
