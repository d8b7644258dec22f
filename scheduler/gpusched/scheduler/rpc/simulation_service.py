"""The Simulation service: handles of simulated GPUs, for demos and tests."""

from __future__ import annotations

from typing import Any, Protocol

import grpc

from gpusched.scheduler.core.errors import Invalid
from gpusched.scheduler.core.model import ProcessReading
from gpusched.scheduler.rpc import convert
from gpusched.scheduler.rpc.errors import guarded
from gpusched.scheduler.rpc.services import Services
from gpusched.v1 import simulation_pb2

Context = grpc.aio.ServicerContext[Any, Any]

#: The most a simulated GPU lets a process linger, in seconds.
MAX_LINGER = 3600.0
#: Longest fault, in characters.
MAX_FAULT = 200


class Settable(Protocol):
    """A simulated inventory, as far as this service needs it."""

    def set_gpu(
        self,
        uuid: str,
        *,
        utilization: int | None = None,
        processes: tuple[ProcessReading, ...] | None = None,
        fault: str | None = None,
        linger_seconds: float | None = None,
        hang: bool | None = None,
    ) -> None: ...


class SimulationService:
    def __init__(self, services: Services, inventory: Settable) -> None:
        self._services = services
        self._inventory = inventory

    @guarded
    async def SetSimulatedGpu(  # noqa: N802
        self, request: simulation_pb2.SetSimulatedGpuRequest, context: Context
    ) -> simulation_pb2.SetSimulatedGpuResponse:
        services = self._services
        caller = services.callers.identify(context)
        if not services.callers.is_server_user(caller):
            services.callers.require_admin(caller, "changing a simulated GPU")
        device = services.device(request.gpu, "gpu")
        linger = convert.seconds(request, "linger")
        if linger is not None and not 0 <= linger <= MAX_LINGER:
            raise Invalid(f"linger: {linger:g} s is out of range; 0 s to {MAX_LINGER:g} s", field="linger")
        if not request.fault.isprintable() or len(request.fault) > MAX_FAULT:
            raise Invalid(f"fault: at most {MAX_FAULT} printable characters are allowed", field="fault")
        try:
            self._inventory.set_gpu(
                device.uuid,
                utilization=request.utilization_percent if request.HasField("utilization_percent") else None,
                processes=tuple(map(convert.process_of, request.processes)) if request.set_processes else None,
                fault=request.fault if request.HasField("fault") else None,
                linger_seconds=linger,
                hang=request.hang if request.HasField("hang") else None,
            )
        except ValueError as error:
            raise Invalid(str(error)) from None
        await services.observer.refresh(device.uuid)
        engine, readings = services.driver.engine, services.observer.readings
        return simulation_pb2.SetSimulatedGpuResponse(
            gpu=convert.gpu(engine, device, *readings.get(device.uuid, (None, None)))
        )
