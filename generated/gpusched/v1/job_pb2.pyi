from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from gpusched.v1 import resources_pb2 as _resources_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_COMPLETED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
    JOB_STATE_TIMED_OUT: _ClassVar[JobState]
    JOB_STATE_PREEMPTED: _ClassVar[JobState]
    JOB_STATE_LOST: _ClassVar[JobState]

class JobKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_KIND_UNSPECIFIED: _ClassVar[JobKind]
    JOB_KIND_INTERACTIVE: _ClassVar[JobKind]
    JOB_KIND_BATCH: _ClassVar[JobKind]

class ReasonCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_CODE_UNSPECIFIED: _ClassVar[ReasonCode]
    REASON_CODE_RESOURCES: _ClassVar[ReasonCode]
    REASON_CODE_PRIORITY: _ClassVar[ReasonCode]
    REASON_CODE_PAUSED: _ClassVar[ReasonCode]
    REASON_CODE_UNAVAILABLE: _ClassVar[ReasonCode]
    REASON_CODE_UNCONFIRMED: _ClassVar[ReasonCode]
    REASON_CODE_STARTING: _ClassVar[ReasonCode]
    REASON_CODE_READY: _ClassVar[ReasonCode]
    REASON_CODE_HELD: _ClassVar[ReasonCode]
    REASON_CODE_DEPENDENCY: _ClassVar[ReasonCode]
    REASON_CODE_BEGIN_TIME: _ClassVar[ReasonCode]
    REASON_CODE_BACKOFF: _ClassVar[ReasonCode]
    REASON_CODE_REATTACH: _ClassVar[ReasonCode]
    REASON_CODE_LIMIT: _ClassVar[ReasonCode]
    REASON_CODE_STORE: _ClassVar[ReasonCode]

class DependencyCondition(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEPENDENCY_CONDITION_UNSPECIFIED: _ClassVar[DependencyCondition]
    DEPENDENCY_CONDITION_OK: _ClassVar[DependencyCondition]
    DEPENDENCY_CONDITION_ANY: _ClassVar[DependencyCondition]
    DEPENDENCY_CONDITION_FAILED: _ClassVar[DependencyCondition]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_COMPLETED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
JOB_STATE_TIMED_OUT: JobState
JOB_STATE_PREEMPTED: JobState
JOB_STATE_LOST: JobState
JOB_KIND_UNSPECIFIED: JobKind
JOB_KIND_INTERACTIVE: JobKind
JOB_KIND_BATCH: JobKind
REASON_CODE_UNSPECIFIED: ReasonCode
REASON_CODE_RESOURCES: ReasonCode
REASON_CODE_PRIORITY: ReasonCode
REASON_CODE_PAUSED: ReasonCode
REASON_CODE_UNAVAILABLE: ReasonCode
REASON_CODE_UNCONFIRMED: ReasonCode
REASON_CODE_STARTING: ReasonCode
REASON_CODE_READY: ReasonCode
REASON_CODE_HELD: ReasonCode
REASON_CODE_DEPENDENCY: ReasonCode
REASON_CODE_BEGIN_TIME: ReasonCode
REASON_CODE_BACKOFF: ReasonCode
REASON_CODE_REATTACH: ReasonCode
REASON_CODE_LIMIT: ReasonCode
REASON_CODE_STORE: ReasonCode
DEPENDENCY_CONDITION_UNSPECIFIED: DependencyCondition
DEPENDENCY_CONDITION_OK: DependencyCondition
DEPENDENCY_CONDITION_ANY: DependencyCondition
DEPENDENCY_CONDITION_FAILED: DependencyCondition

class Reason(_message.Message):
    __slots__ = ("code", "message", "gpus_needed", "gpus_free", "blockers", "ahead_job_id", "until")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    GPUS_NEEDED_FIELD_NUMBER: _ClassVar[int]
    GPUS_FREE_FIELD_NUMBER: _ClassVar[int]
    BLOCKERS_FIELD_NUMBER: _ClassVar[int]
    AHEAD_JOB_ID_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    code: ReasonCode
    message: str
    gpus_needed: int
    gpus_free: int
    blockers: _containers.RepeatedCompositeFieldContainer[Blocker]
    ahead_job_id: str
    until: _timestamp_pb2.Timestamp
    def __init__(self, code: _Optional[_Union[ReasonCode, str]] = ..., message: _Optional[str] = ..., gpus_needed: _Optional[int] = ..., gpus_free: _Optional[int] = ..., blockers: _Optional[_Iterable[_Union[Blocker, _Mapping]]] = ..., ahead_job_id: _Optional[str] = ..., until: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Blocker(_message.Message):
    __slots__ = ("gpu_uuid", "gpu_index", "node", "gpu_state", "job_id", "user", "job_name", "until")
    GPU_UUID_FIELD_NUMBER: _ClassVar[int]
    GPU_INDEX_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    GPU_STATE_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    JOB_NAME_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    gpu_uuid: str
    gpu_index: int
    node: str
    gpu_state: _resources_pb2.GpuState
    job_id: str
    user: str
    job_name: str
    until: _timestamp_pb2.Timestamp
    def __init__(self, gpu_uuid: _Optional[str] = ..., gpu_index: _Optional[int] = ..., node: _Optional[str] = ..., gpu_state: _Optional[_Union[_resources_pb2.GpuState, str]] = ..., job_id: _Optional[str] = ..., user: _Optional[str] = ..., job_name: _Optional[str] = ..., until: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class AllocatedGpu(_message.Message):
    __slots__ = ("uuid", "index", "node", "model", "memory_bytes", "share_bytes")
    UUID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARE_BYTES_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    index: int
    node: str
    model: str
    memory_bytes: int
    share_bytes: int
    def __init__(self, uuid: _Optional[str] = ..., index: _Optional[int] = ..., node: _Optional[str] = ..., model: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., share_bytes: _Optional[int] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("exit_status", "signal", "message")
    EXIT_STATUS_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    exit_status: int
    signal: int
    message: str
    def __init__(self, exit_status: _Optional[int] = ..., signal: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "kind", "state", "name", "user", "uid", "resources", "priority", "time_limit", "command", "submitted_at", "started_at", "ended_at", "position", "reason", "gpus", "lease_id", "outcome", "holder_pid", "node", "history", "forecast", "promise", "working_directory", "output_path", "retry", "attempt", "requeue", "dependencies", "begin_at", "held", "usage", "attempts", "estimate", "preemptible", "preempt_signal", "ending", "ending_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIME_LIMIT_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    HOLDER_PID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    FORECAST_FIELD_NUMBER: _ClassVar[int]
    PROMISE_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_PATH_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REQUEUE_FIELD_NUMBER: _ClassVar[int]
    DEPENDENCIES_FIELD_NUMBER: _ClassVar[int]
    BEGIN_AT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIBLE_FIELD_NUMBER: _ClassVar[int]
    PREEMPT_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    ENDING_FIELD_NUMBER: _ClassVar[int]
    ENDING_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: JobKind
    state: JobState
    name: str
    user: str
    uid: int
    resources: _resources_pb2.ResourceRequest
    priority: int
    time_limit: _duration_pb2.Duration
    command: _containers.RepeatedScalarFieldContainer[str]
    submitted_at: _timestamp_pb2.Timestamp
    started_at: _timestamp_pb2.Timestamp
    ended_at: _timestamp_pb2.Timestamp
    position: int
    reason: Reason
    gpus: _containers.RepeatedCompositeFieldContainer[AllocatedGpu]
    lease_id: str
    outcome: Outcome
    holder_pid: int
    node: str
    history: _containers.RepeatedCompositeFieldContainer[JobEvent]
    forecast: _timestamp_pb2.Timestamp
    promise: _timestamp_pb2.Timestamp
    working_directory: str
    output_path: str
    retry: RetryPolicy
    attempt: int
    requeue: bool
    dependencies: _containers.RepeatedCompositeFieldContainer[Dependency]
    begin_at: _timestamp_pb2.Timestamp
    held: bool
    usage: Usage
    attempts: _containers.RepeatedCompositeFieldContainer[Attempt]
    estimate: _duration_pb2.Duration
    preemptible: bool
    preempt_signal: PreemptSignal
    ending: str
    ending_at: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[JobKind, str]] = ..., state: _Optional[_Union[JobState, str]] = ..., name: _Optional[str] = ..., user: _Optional[str] = ..., uid: _Optional[int] = ..., resources: _Optional[_Union[_resources_pb2.ResourceRequest, _Mapping]] = ..., priority: _Optional[int] = ..., time_limit: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., command: _Optional[_Iterable[str]] = ..., submitted_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., started_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., ended_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., position: _Optional[int] = ..., reason: _Optional[_Union[Reason, _Mapping]] = ..., gpus: _Optional[_Iterable[_Union[AllocatedGpu, _Mapping]]] = ..., lease_id: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., holder_pid: _Optional[int] = ..., node: _Optional[str] = ..., history: _Optional[_Iterable[_Union[JobEvent, _Mapping]]] = ..., forecast: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., promise: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., working_directory: _Optional[str] = ..., output_path: _Optional[str] = ..., retry: _Optional[_Union[RetryPolicy, _Mapping]] = ..., attempt: _Optional[int] = ..., requeue: bool = ..., dependencies: _Optional[_Iterable[_Union[Dependency, _Mapping]]] = ..., begin_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., held: bool = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[Attempt, _Mapping]]] = ..., estimate: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., preemptible: bool = ..., preempt_signal: _Optional[_Union[PreemptSignal, _Mapping]] = ..., ending: _Optional[str] = ..., ending_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class PreemptSignal(_message.Message):
    __slots__ = ("name", "before")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    name: str
    before: _duration_pb2.Duration
    def __init__(self, name: _Optional[str] = ..., before: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class JobEvent(_message.Message):
    __slots__ = ("at", "state", "message")
    AT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    state: JobState
    message: str
    def __init__(self, at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[_Union[JobState, str]] = ..., message: _Optional[str] = ...) -> None: ...

class RetryPolicy(_message.Message):
    __slots__ = ("max_retries", "backoff", "exit_statuses")
    MAX_RETRIES_FIELD_NUMBER: _ClassVar[int]
    BACKOFF_FIELD_NUMBER: _ClassVar[int]
    EXIT_STATUSES_FIELD_NUMBER: _ClassVar[int]
    max_retries: int
    backoff: _duration_pb2.Duration
    exit_statuses: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, max_retries: _Optional[int] = ..., backoff: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., exit_statuses: _Optional[_Iterable[int]] = ...) -> None: ...

class Dependency(_message.Message):
    __slots__ = ("job_id", "condition")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    condition: DependencyCondition
    def __init__(self, job_id: _Optional[str] = ..., condition: _Optional[_Union[DependencyCondition, str]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("wall", "cpu", "peak_memory_bytes", "gpu_seconds", "peak_gpu_memory_bytes")
    WALL_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEAK_GPU_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    wall: _duration_pb2.Duration
    cpu: _duration_pb2.Duration
    peak_memory_bytes: int
    gpu_seconds: float
    peak_gpu_memory_bytes: int
    def __init__(self, wall: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., cpu: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., peak_memory_bytes: _Optional[int] = ..., gpu_seconds: _Optional[float] = ..., peak_gpu_memory_bytes: _Optional[int] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("number", "started_at", "ended_at", "state", "outcome", "usage", "gpus", "output_path")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_PATH_FIELD_NUMBER: _ClassVar[int]
    number: int
    started_at: _timestamp_pb2.Timestamp
    ended_at: _timestamp_pb2.Timestamp
    state: JobState
    outcome: Outcome
    usage: Usage
    gpus: _containers.RepeatedCompositeFieldContainer[AllocatedGpu]
    output_path: str
    def __init__(self, number: _Optional[int] = ..., started_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., ended_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[_Union[JobState, str]] = ..., outcome: _Optional[_Union[Outcome, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., gpus: _Optional[_Iterable[_Union[AllocatedGpu, _Mapping]]] = ..., output_path: _Optional[str] = ...) -> None: ...
