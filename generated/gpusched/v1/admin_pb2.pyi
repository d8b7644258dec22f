from google.protobuf import field_mask_pb2 as _field_mask_pb2
from gpusched.v1 import job_pb2 as _job_pb2
from gpusched.v1 import policy_pb2 as _policy_pb2
from gpusched.v1 import resources_pb2 as _resources_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DrainTarget(_message.Message):
    __slots__ = ("gpu", "node")
    GPU_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    gpu: str
    node: str
    def __init__(self, gpu: _Optional[str] = ..., node: _Optional[str] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("target", "reason")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    target: DrainTarget
    reason: str
    def __init__(self, target: _Optional[_Union[DrainTarget, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("gpus",)
    GPUS_FIELD_NUMBER: _ClassVar[int]
    gpus: _containers.RepeatedCompositeFieldContainer[_resources_pb2.Gpu]
    def __init__(self, gpus: _Optional[_Iterable[_Union[_resources_pb2.Gpu, _Mapping]]] = ...) -> None: ...

class UndrainRequest(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: DrainTarget
    def __init__(self, target: _Optional[_Union[DrainTarget, _Mapping]] = ...) -> None: ...

class UndrainResponse(_message.Message):
    __slots__ = ("gpus",)
    GPUS_FIELD_NUMBER: _ClassVar[int]
    gpus: _containers.RepeatedCompositeFieldContainer[_resources_pb2.Gpu]
    def __init__(self, gpus: _Optional[_Iterable[_Union[_resources_pb2.Gpu, _Mapping]]] = ...) -> None: ...

class PauseSchedulingRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class PauseSchedulingResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeSchedulingRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeSchedulingResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetPolicyRequest(_message.Message):
    __slots__ = ("policy", "update_mask", "reset")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    policy: _policy_pb2.Policy
    update_mask: _field_mask_pb2.FieldMask
    reset: bool
    def __init__(self, policy: _Optional[_Union[_policy_pb2.Policy, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., reset: bool = ...) -> None: ...

class SetPolicyResponse(_message.Message):
    __slots__ = ("policy", "notes")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    policy: _policy_pb2.Policy
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, policy: _Optional[_Union[_policy_pb2.Policy, _Mapping]] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class SetJobStateRequest(_message.Message):
    __slots__ = ("job_id", "state", "reason")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    state: _job_pb2.JobState
    reason: str
    def __init__(self, job_id: _Optional[str] = ..., state: _Optional[_Union[_job_pb2.JobState, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class SetJobStateResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _job_pb2.Job
    def __init__(self, job: _Optional[_Union[_job_pb2.Job, _Mapping]] = ...) -> None: ...

class DiagnoseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DiagnoseResponse(_message.Message):
    __slots__ = ("findings",)
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    def __init__(self, findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("area", "ok", "message")
    AREA_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    area: str
    ok: bool
    message: str
    def __init__(self, area: _Optional[str] = ..., ok: bool = ..., message: _Optional[str] = ...) -> None: ...
