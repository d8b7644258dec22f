"""The gRPC server: one set of servicers, health and reflection, on loopback."""

from __future__ import annotations

import resource
import socket
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from gpusched.scheduler.rpc.admin_service import AdminService
from gpusched.scheduler.rpc.batch_service import BatchService
from gpusched.scheduler.rpc.companions import Companions, Symbols
from gpusched.scheduler.rpc.decoding import Registrar
from gpusched.scheduler.rpc.lease_service import LeaseService
from gpusched.scheduler.rpc.query_service import QueryService
from gpusched.scheduler.rpc.services import Services
from gpusched.scheduler.rpc.simulation_service import Settable, SimulationService
from gpusched.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    scheduler_pb2,
    scheduler_pb2_grpc,
    simulation_pb2,
    simulation_pb2_grpc,
)

#: Largest message taken, in bytes: a command line with a generous environment of its own.
MAX_MESSAGE = 1 << 20
#: How long a call may wait for the event loop to come to it, in seconds.
MAX_UNSEEN = 24 * 3600
#: Most files, and so connections, that are asked for where the system sets no limit.
MAX_FILES = 1 << 20

OPTIONS: list[tuple[str, Any]] = [
    # A second scheduler on the port must fail, not share it.
    ("grpc.so_reuseport", 0),
    # Stock limits lose calls with a bare CANCELLED when thousands arrive at once, as after a restart.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    # The same happens, unseen by us, to calls that a busy server has not come to within 30 s.
    ("grpc.server_max_unrequested_time_in_server", MAX_UNSEEN),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
]


class SchedulerServicer(LeaseService, QueryService, BatchService, scheduler_pb2_grpc.SchedulerServicer):
    """The Scheduler service."""

    def __init__(self, services: Services) -> None:
        LeaseService.__init__(self, services)
        QueryService.__init__(self, services)
        BatchService.__init__(self, services)


class RpcServer:
    """The listening server.

    Args:
        services: what the calls work on.
        simulation: the simulated inventory, None for a real one.
    """

    def __init__(self) -> None:
        self._server = grpc.aio.server(options=OPTIONS)
        self._health = HealthServicer()
        self._names: list[str] = []

    def bind(self, host: str, port: int) -> int:
        """Take the port.

        Returns:
            The port bound, which is the one asked for unless that was 0.

        Raises:
            OSError: it is taken.
        """
        # The library would print its own account of a port that is taken; this asks first, without taking it.
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        try:
            bound = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(str(error)) from None
        if bound == 0:
            raise OSError("the port could not be bound")
        return bound

    async def start(self, services: Services, simulation: Settable | None) -> None:
        """Serve from now on, and say so in the health service."""
        _lift_file_limit()
        server = self._server
        ours: Any = Registrar(server)
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(SchedulerServicer(services), ours)
        admin_pb2_grpc.add_AdminServicer_to_server(AdminService(services), ours)
        self._names = [
            scheduler_pb2.DESCRIPTOR.services_by_name["Scheduler"].full_name,
            admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name,
        ]
        if simulation is not None:
            simulation_pb2_grpc.add_SimulationServicer_to_server(SimulationService(services, simulation), ours)
            self._names.append(simulation_pb2.DESCRIPTOR.services_by_name["Simulation"].full_name)
        companions: Any = Companions(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, companions)
        names = [*self._names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
        reflected = ReflectionServicer(names, pool=Symbols())
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, companions)
        await server.start()
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace: float) -> None:
        """Take no new calls, and end those that are open after the grace (seconds)."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)


def _lift_file_limit() -> None:
    """Let as many connections be open as the system allows: each client has one, and 1024 is a usual soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            pass  # then it is as many as it is
