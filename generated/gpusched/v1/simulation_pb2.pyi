from google.protobuf import duration_pb2 as _duration_pb2
from gpusched.v1 import resources_pb2 as _resources_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SetSimulatedGpuRequest(_message.Message):
    __slots__ = ("gpu", "utilization_percent", "processes", "set_processes", "fault", "linger", "hang")
    GPU_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    SET_PROCESSES_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    LINGER_FIELD_NUMBER: _ClassVar[int]
    HANG_FIELD_NUMBER: _ClassVar[int]
    gpu: str
    utilization_percent: int
    processes: _containers.RepeatedCompositeFieldContainer[_resources_pb2.GpuProcess]
    set_processes: bool
    fault: str
    linger: _duration_pb2.Duration
    hang: bool
    def __init__(self, gpu: _Optional[str] = ..., utilization_percent: _Optional[int] = ..., processes: _Optional[_Iterable[_Union[_resources_pb2.GpuProcess, _Mapping]]] = ..., set_processes: bool = ..., fault: _Optional[str] = ..., linger: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., hang: bool = ...) -> None: ...

class SetSimulatedGpuResponse(_message.Message):
    __slots__ = ("gpu",)
    GPU_FIELD_NUMBER: _ClassVar[int]
    gpu: _resources_pb2.Gpu
    def __init__(self, gpu: _Optional[_Union[_resources_pb2.Gpu, _Mapping]] = ...) -> None: ...
