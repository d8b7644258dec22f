from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from gpusched.v1 import job_pb2 as _job_pb2
from gpusched.v1 import policy_pb2 as _policy_pb2
from gpusched.v1 import resources_pb2 as _resources_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NoticeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NOTICE_KIND_UNSPECIFIED: _ClassVar[NoticeKind]
    NOTICE_KIND_TIME_LIMIT: _ClassVar[NoticeKind]
    NOTICE_KIND_PREEMPTION: _ClassVar[NoticeKind]
    NOTICE_KIND_GPU_UNHEALTHY: _ClassVar[NoticeKind]
    NOTICE_KIND_GPU_FOREIGN: _ClassVar[NoticeKind]
    NOTICE_KIND_DRAIN: _ClassVar[NoticeKind]
    NOTICE_KIND_SERVER_STOPPING: _ClassVar[NoticeKind]
    NOTICE_KIND_CANCEL: _ClassVar[NoticeKind]
    NOTICE_KIND_GPU_MEMORY: _ClassVar[NoticeKind]
NOTICE_KIND_UNSPECIFIED: NoticeKind
NOTICE_KIND_TIME_LIMIT: NoticeKind
NOTICE_KIND_PREEMPTION: NoticeKind
NOTICE_KIND_GPU_UNHEALTHY: NoticeKind
NOTICE_KIND_GPU_FOREIGN: NoticeKind
NOTICE_KIND_DRAIN: NoticeKind
NOTICE_KIND_SERVER_STOPPING: NoticeKind
NOTICE_KIND_CANCEL: NoticeKind
NOTICE_KIND_GPU_MEMORY: NoticeKind

class Holder(_message.Message):
    __slots__ = ("pid", "start_ticks")
    PID_FIELD_NUMBER: _ClassVar[int]
    START_TICKS_FIELD_NUMBER: _ClassVar[int]
    pid: int
    start_ticks: int
    def __init__(self, pid: _Optional[int] = ..., start_ticks: _Optional[int] = ...) -> None: ...

class AcquireRequest(_message.Message):
    __slots__ = ("resources", "name", "priority", "time_limit", "max_wait", "immediate", "dry_run", "request_id", "resume_token", "command", "holder", "auto_confirm", "estimate", "preemptible", "preempt_signal")
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIME_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MAX_WAIT_FIELD_NUMBER: _ClassVar[int]
    IMMEDIATE_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    AUTO_CONFIRM_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIBLE_FIELD_NUMBER: _ClassVar[int]
    PREEMPT_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    resources: _resources_pb2.ResourceRequest
    name: str
    priority: int
    time_limit: _duration_pb2.Duration
    max_wait: _duration_pb2.Duration
    immediate: bool
    dry_run: bool
    request_id: str
    resume_token: str
    command: _containers.RepeatedScalarFieldContainer[str]
    holder: Holder
    auto_confirm: bool
    estimate: _duration_pb2.Duration
    preemptible: bool
    preempt_signal: _job_pb2.PreemptSignal
    def __init__(self, resources: _Optional[_Union[_resources_pb2.ResourceRequest, _Mapping]] = ..., name: _Optional[str] = ..., priority: _Optional[int] = ..., time_limit: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., max_wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., immediate: bool = ..., dry_run: bool = ..., request_id: _Optional[str] = ..., resume_token: _Optional[str] = ..., command: _Optional[_Iterable[str]] = ..., holder: _Optional[_Union[Holder, _Mapping]] = ..., auto_confirm: bool = ..., estimate: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., preemptible: bool = ..., preempt_signal: _Optional[_Union[_job_pb2.PreemptSignal, _Mapping]] = ...) -> None: ...

class AcquireResponse(_message.Message):
    __slots__ = ("accepted", "queued", "granted", "notice", "ended", "dry_run")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    queued: Queued
    granted: Granted
    notice: Notice
    ended: Ended
    dry_run: DryRun
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., queued: _Optional[_Union[Queued, _Mapping]] = ..., granted: _Optional[_Union[Granted, _Mapping]] = ..., notice: _Optional[_Union[Notice, _Mapping]] = ..., ended: _Optional[_Union[Ended, _Mapping]] = ..., dry_run: _Optional[_Union[DryRun, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("job_id", "resume_token", "state_id", "resumed")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    resume_token: str
    state_id: str
    resumed: bool
    def __init__(self, job_id: _Optional[str] = ..., resume_token: _Optional[str] = ..., state_id: _Optional[str] = ..., resumed: bool = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("job_id", "position", "total", "reason", "submitted_at", "forecast", "promise")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    FORECAST_FIELD_NUMBER: _ClassVar[int]
    PROMISE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    position: int
    total: int
    reason: _job_pb2.Reason
    submitted_at: _timestamp_pb2.Timestamp
    forecast: _timestamp_pb2.Timestamp
    promise: _timestamp_pb2.Timestamp
    def __init__(self, job_id: _Optional[str] = ..., position: _Optional[int] = ..., total: _Optional[int] = ..., reason: _Optional[_Union[_job_pb2.Reason, _Mapping]] = ..., submitted_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., forecast: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., promise: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Granted(_message.Message):
    __slots__ = ("job_id", "lease_id", "epoch", "gpus", "confirm_by", "granted_at", "expires_at", "environment")
    class EnvironmentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    CONFIRM_BY_FIELD_NUMBER: _ClassVar[int]
    GRANTED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    lease_id: str
    epoch: int
    gpus: _containers.RepeatedCompositeFieldContainer[_job_pb2.AllocatedGpu]
    confirm_by: _timestamp_pb2.Timestamp
    granted_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    environment: _containers.ScalarMap[str, str]
    def __init__(self, job_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., epoch: _Optional[int] = ..., gpus: _Optional[_Iterable[_Union[_job_pb2.AllocatedGpu, _Mapping]]] = ..., confirm_by: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., granted_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., environment: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("job_id", "kind", "message", "deadline")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    kind: NoticeKind
    message: str
    deadline: _timestamp_pb2.Timestamp
    def __init__(self, job_id: _Optional[str] = ..., kind: _Optional[_Union[NoticeKind, str]] = ..., message: _Optional[str] = ..., deadline: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Ended(_message.Message):
    __slots__ = ("job_id", "state", "message")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    state: _job_pb2.JobState
    message: str
    def __init__(self, job_id: _Optional[str] = ..., state: _Optional[_Union[_job_pb2.JobState, str]] = ..., message: _Optional[str] = ...) -> None: ...

class DryRun(_message.Message):
    __slots__ = ("starts_now", "position", "reason", "forecast", "promise", "gpus")
    STARTS_NOW_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FORECAST_FIELD_NUMBER: _ClassVar[int]
    PROMISE_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    starts_now: bool
    position: int
    reason: _job_pb2.Reason
    forecast: _timestamp_pb2.Timestamp
    promise: _timestamp_pb2.Timestamp
    gpus: _containers.RepeatedCompositeFieldContainer[_job_pb2.AllocatedGpu]
    def __init__(self, starts_now: bool = ..., position: _Optional[int] = ..., reason: _Optional[_Union[_job_pb2.Reason, _Mapping]] = ..., forecast: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., promise: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., gpus: _Optional[_Iterable[_Union[_job_pb2.AllocatedGpu, _Mapping]]] = ...) -> None: ...

class ConfirmRequest(_message.Message):
    __slots__ = ("job_id", "resume_token", "epoch")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    resume_token: str
    epoch: int
    def __init__(self, job_id: _Optional[str] = ..., resume_token: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class ConfirmResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("job_id", "resume_token", "epoch", "outcome", "timed_out", "usage")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TIMED_OUT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    resume_token: str
    epoch: int
    outcome: _job_pb2.Outcome
    timed_out: bool
    usage: _job_pb2.Usage
    def __init__(self, job_id: _Optional[str] = ..., resume_token: _Optional[str] = ..., epoch: _Optional[int] = ..., outcome: _Optional[_Union[_job_pb2.Outcome, _Mapping]] = ..., timed_out: bool = ..., usage: _Optional[_Union[_job_pb2.Usage, _Mapping]] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("service", "version", "started_at", "uptime", "address", "gpus_total", "gpus_allocated", "gpus_free", "jobs_running", "jobs_queued", "jobs_total", "paused", "pause_reason", "inventory_mode", "node", "user", "uid", "pid", "state_id", "admin_socket", "policy", "caller", "policy_settings", "policy_changed", "trouble")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    GPUS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    GPUS_ALLOCATED_FIELD_NUMBER: _ClassVar[int]
    GPUS_FREE_FIELD_NUMBER: _ClassVar[int]
    JOBS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    JOBS_QUEUED_FIELD_NUMBER: _ClassVar[int]
    JOBS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    PAUSE_REASON_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_MODE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    ADMIN_SOCKET_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    POLICY_SETTINGS_FIELD_NUMBER: _ClassVar[int]
    POLICY_CHANGED_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    service: str
    version: str
    started_at: _timestamp_pb2.Timestamp
    uptime: _duration_pb2.Duration
    address: str
    gpus_total: int
    gpus_allocated: int
    gpus_free: int
    jobs_running: int
    jobs_queued: int
    jobs_total: int
    paused: bool
    pause_reason: str
    inventory_mode: str
    node: str
    user: str
    uid: int
    pid: int
    state_id: str
    admin_socket: str
    policy: str
    caller: str
    policy_settings: _policy_pb2.Policy
    policy_changed: bool
    trouble: str
    def __init__(self, service: _Optional[str] = ..., version: _Optional[str] = ..., started_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., uptime: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., address: _Optional[str] = ..., gpus_total: _Optional[int] = ..., gpus_allocated: _Optional[int] = ..., gpus_free: _Optional[int] = ..., jobs_running: _Optional[int] = ..., jobs_queued: _Optional[int] = ..., jobs_total: _Optional[int] = ..., paused: bool = ..., pause_reason: _Optional[str] = ..., inventory_mode: _Optional[str] = ..., node: _Optional[str] = ..., user: _Optional[str] = ..., uid: _Optional[int] = ..., pid: _Optional[int] = ..., state_id: _Optional[str] = ..., admin_socket: _Optional[str] = ..., policy: _Optional[str] = ..., caller: _Optional[str] = ..., policy_settings: _Optional[_Union[_policy_pb2.Policy, _Mapping]] = ..., policy_changed: bool = ..., trouble: _Optional[str] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _job_pb2.Job
    def __init__(self, job: _Optional[_Union[_job_pb2.Job, _Mapping]] = ...) -> None: ...

class JobFilter(_message.Message):
    __slots__ = ("states", "user", "name", "include_ended", "node")
    STATES_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_ENDED_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedScalarFieldContainer[_job_pb2.JobState]
    user: str
    name: str
    include_ended: bool
    node: str
    def __init__(self, states: _Optional[_Iterable[_Union[_job_pb2.JobState, str]]] = ..., user: _Optional[str] = ..., name: _Optional[str] = ..., include_ended: bool = ..., node: _Optional[str] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("filter", "page_size", "page_token")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    filter: JobFilter
    page_size: int
    page_token: str
    def __init__(self, filter: _Optional[_Union[JobFilter, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token", "total_size")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[_job_pb2.Job]
    next_page_token: str
    total_size: int
    def __init__(self, jobs: _Optional[_Iterable[_Union[_job_pb2.Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ...) -> None: ...

class WatchJobsRequest(_message.Message):
    __slots__ = ("filter", "job_id")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    filter: JobFilter
    job_id: str
    def __init__(self, filter: _Optional[_Union[JobFilter, _Mapping]] = ..., job_id: _Optional[str] = ...) -> None: ...

class WatchJobsResponse(_message.Message):
    __slots__ = ("jobs", "snapshot")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[_job_pb2.Job]
    snapshot: bool
    def __init__(self, jobs: _Optional[_Iterable[_Union[_job_pb2.Job, _Mapping]]] = ..., snapshot: bool = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("job_id", "reason")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    reason: str
    def __init__(self, job_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _job_pb2.Job
    def __init__(self, job: _Optional[_Union[_job_pb2.Job, _Mapping]] = ...) -> None: ...

class UpdateJobRequest(_message.Message):
    __slots__ = ("job", "update_mask")
    JOB_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    job: _job_pb2.Job
    update_mask: _field_mask_pb2.FieldMask
    def __init__(self, job: _Optional[_Union[_job_pb2.Job, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class UpdateJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _job_pb2.Job
    def __init__(self, job: _Optional[_Union[_job_pb2.Job, _Mapping]] = ...) -> None: ...

class ExplainJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class ExplainJobResponse(_message.Message):
    __slots__ = ("job", "lines")
    JOB_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    job: _job_pb2.Job
    lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job: _Optional[_Union[_job_pb2.Job, _Mapping]] = ..., lines: _Optional[_Iterable[str]] = ...) -> None: ...

class ListGpusRequest(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: str
    def __init__(self, node: _Optional[str] = ...) -> None: ...

class ListGpusResponse(_message.Message):
    __slots__ = ("gpus",)
    GPUS_FIELD_NUMBER: _ClassVar[int]
    gpus: _containers.RepeatedCompositeFieldContainer[_resources_pb2.Gpu]
    def __init__(self, gpus: _Optional[_Iterable[_Union[_resources_pb2.Gpu, _Mapping]]] = ...) -> None: ...

class WatchGpusRequest(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: str
    def __init__(self, node: _Optional[str] = ...) -> None: ...

class WatchGpusResponse(_message.Message):
    __slots__ = ("gpus",)
    GPUS_FIELD_NUMBER: _ClassVar[int]
    gpus: _containers.RepeatedCompositeFieldContainer[_resources_pb2.Gpu]
    def __init__(self, gpus: _Optional[_Iterable[_Union[_resources_pb2.Gpu, _Mapping]]] = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[_resources_pb2.Node]
    def __init__(self, nodes: _Optional[_Iterable[_Union[_resources_pb2.Node, _Mapping]]] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("resources", "command", "name", "priority", "time_limit", "environment", "working_directory", "output_path", "retry", "requeue", "dependencies", "begin_at", "held", "request_id", "grace", "estimate", "preemptible", "preempt_signal")
    class EnvironmentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIME_LIMIT_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_PATH_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    REQUEUE_FIELD_NUMBER: _ClassVar[int]
    DEPENDENCIES_FIELD_NUMBER: _ClassVar[int]
    BEGIN_AT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GRACE_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIBLE_FIELD_NUMBER: _ClassVar[int]
    PREEMPT_SIGNAL_FIELD_NUMBER: _ClassVar[int]
    resources: _resources_pb2.ResourceRequest
    command: _containers.RepeatedScalarFieldContainer[str]
    name: str
    priority: int
    time_limit: _duration_pb2.Duration
    environment: _containers.ScalarMap[str, str]
    working_directory: str
    output_path: str
    retry: _job_pb2.RetryPolicy
    requeue: bool
    dependencies: _containers.RepeatedCompositeFieldContainer[_job_pb2.Dependency]
    begin_at: _timestamp_pb2.Timestamp
    held: bool
    request_id: str
    grace: _duration_pb2.Duration
    estimate: _duration_pb2.Duration
    preemptible: bool
    preempt_signal: _job_pb2.PreemptSignal
    def __init__(self, resources: _Optional[_Union[_resources_pb2.ResourceRequest, _Mapping]] = ..., command: _Optional[_Iterable[str]] = ..., name: _Optional[str] = ..., priority: _Optional[int] = ..., time_limit: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., environment: _Optional[_Mapping[str, str]] = ..., working_directory: _Optional[str] = ..., output_path: _Optional[str] = ..., retry: _Optional[_Union[_job_pb2.RetryPolicy, _Mapping]] = ..., requeue: bool = ..., dependencies: _Optional[_Iterable[_Union[_job_pb2.Dependency, _Mapping]]] = ..., begin_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., held: bool = ..., request_id: _Optional[str] = ..., grace: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., estimate: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., preemptible: bool = ..., preempt_signal: _Optional[_Union[_job_pb2.PreemptSignal, _Mapping]] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _job_pb2.Job
    def __init__(self, job: _Optional[_Union[_job_pb2.Job, _Mapping]] = ...) -> None: ...

class WaitJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class WaitJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _job_pb2.Job
    def __init__(self, job: _Optional[_Union[_job_pb2.Job, _Mapping]] = ...) -> None: ...

class StreamLogsRequest(_message.Message):
    __slots__ = ("job_id", "attempt", "tail_lines", "follow", "offset")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TAIL_LINES_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    attempt: int
    tail_lines: int
    follow: bool
    offset: int
    def __init__(self, job_id: _Optional[str] = ..., attempt: _Optional[int] = ..., tail_lines: _Optional[int] = ..., follow: bool = ..., offset: _Optional[int] = ...) -> None: ...

class StreamLogsResponse(_message.Message):
    __slots__ = ("data", "offset", "attempt")
    DATA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    offset: int
    attempt: int
    def __init__(self, data: _Optional[bytes] = ..., offset: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class RequeueJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class RequeueJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _job_pb2.Job
    def __init__(self, job: _Optional[_Union[_job_pb2.Job, _Mapping]] = ...) -> None: ...
