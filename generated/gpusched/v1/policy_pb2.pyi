from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Policy(_message.Message):
    __slots__ = ("order", "backfill", "candidates", "depth", "freeze_bypasses", "freeze_wait", "aging", "starvation", "half_life", "shares", "preemption", "preempt_after", "preempt_grace", "preempt_most", "user_gpus", "user_jobs", "quotas", "borrow")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    BACKFILL_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    FREEZE_BYPASSES_FIELD_NUMBER: _ClassVar[int]
    FREEZE_WAIT_FIELD_NUMBER: _ClassVar[int]
    AGING_FIELD_NUMBER: _ClassVar[int]
    STARVATION_FIELD_NUMBER: _ClassVar[int]
    HALF_LIFE_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    PREEMPTION_FIELD_NUMBER: _ClassVar[int]
    PREEMPT_AFTER_FIELD_NUMBER: _ClassVar[int]
    PREEMPT_GRACE_FIELD_NUMBER: _ClassVar[int]
    PREEMPT_MOST_FIELD_NUMBER: _ClassVar[int]
    USER_GPUS_FIELD_NUMBER: _ClassVar[int]
    USER_JOBS_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    BORROW_FIELD_NUMBER: _ClassVar[int]
    order: str
    backfill: str
    candidates: str
    depth: int
    freeze_bypasses: int
    freeze_wait: _duration_pb2.Duration
    aging: _duration_pb2.Duration
    starvation: _duration_pb2.Duration
    half_life: _duration_pb2.Duration
    shares: _containers.RepeatedCompositeFieldContainer[Share]
    preemption: bool
    preempt_after: _duration_pb2.Duration
    preempt_grace: _duration_pb2.Duration
    preempt_most: int
    user_gpus: int
    user_jobs: int
    quotas: _containers.RepeatedCompositeFieldContainer[Quota]
    borrow: bool
    def __init__(self, order: _Optional[str] = ..., backfill: _Optional[str] = ..., candidates: _Optional[str] = ..., depth: _Optional[int] = ..., freeze_bypasses: _Optional[int] = ..., freeze_wait: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., aging: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., starvation: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., half_life: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., shares: _Optional[_Iterable[_Union[Share, _Mapping]]] = ..., preemption: bool = ..., preempt_after: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., preempt_grace: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., preempt_most: _Optional[int] = ..., user_gpus: _Optional[int] = ..., user_jobs: _Optional[int] = ..., quotas: _Optional[_Iterable[_Union[Quota, _Mapping]]] = ..., borrow: bool = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("path", "shares")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    path: str
    shares: float
    def __init__(self, path: _Optional[str] = ..., shares: _Optional[float] = ...) -> None: ...

class Quota(_message.Message):
    __slots__ = ("name", "gpus", "jobs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    name: str
    gpus: int
    jobs: int
    def __init__(self, name: _Optional[str] = ..., gpus: _Optional[int] = ..., jobs: _Optional[int] = ...) -> None: ...
