"""The Admin service, for the person who looks after the box."""

from __future__ import annotations

import logging
from typing import Any

import grpc

from gpusched.scheduler import policies
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.errors import Invalid, NotFound
from gpusched.scheduler.core.pool import Device
from gpusched.scheduler.core.states import State
from gpusched.scheduler.doctor import diagnose
from gpusched.scheduler.logs import log_event
from gpusched.scheduler.rpc import convert
from gpusched.scheduler.rpc.errors import guarded
from gpusched.scheduler.rpc.policy_convert import policy, policy_of
from gpusched.scheduler.rpc.services import Services
from gpusched.v1 import admin_pb2, admin_pb2_grpc, resources_pb2

log = logging.getLogger("gpusched.admin")

Context = grpc.aio.ServicerContext[Any, Any]


class AdminService(admin_pb2_grpc.AdminServicer):
    def __init__(self, services: Services) -> None:
        self._services = services
        self._driver = services.driver
        self._engine = services.driver.engine

    @guarded
    async def Drain(self, request: admin_pb2.DrainRequest, context: Context) -> admin_pb2.DrainResponse:  # noqa: N802
        user = self._admin(context, "drain")
        devices = self._set(request.target, _reason(request.reason) or f"by {user}")
        log_event(log, "drain", user=user, target=str(request.target).strip(), reason=request.reason)
        await self._driver.saved()
        return admin_pb2.DrainResponse(gpus=self._show(devices))

    @guarded
    async def Undrain(  # noqa: N802
        self, request: admin_pb2.UndrainRequest, context: Context
    ) -> admin_pb2.UndrainResponse:
        user = self._admin(context, "undrain")
        devices = self._set(request.target, None)
        await self._services.observer.forgive(device.uuid for device in devices)
        log_event(log, "undrain", user=user, target=str(request.target).strip())
        await self._driver.saved()
        return admin_pb2.UndrainResponse(gpus=self._show(devices))

    @guarded
    async def PauseScheduling(  # noqa: N802
        self, request: admin_pb2.PauseSchedulingRequest, context: Context
    ) -> admin_pb2.PauseSchedulingResponse:
        user = self._admin(context, "pause")
        self._driver.handle(ev.Pause(_reason(request.reason) or f"by {user}"))
        log_event(log, "pause", user=user, reason=request.reason)
        await self._driver.saved()
        return admin_pb2.PauseSchedulingResponse()

    @guarded
    async def ResumeScheduling(  # noqa: N802
        self, request: admin_pb2.ResumeSchedulingRequest, context: Context
    ) -> admin_pb2.ResumeSchedulingResponse:
        user = self._admin(context, "resume")
        self._driver.handle(ev.Pause(None))
        log_event(log, "resume", user=user)
        await self._driver.saved()
        return admin_pb2.ResumeSchedulingResponse()

    @guarded
    async def SetPolicy(  # noqa: N802
        self, request: admin_pb2.SetPolicyRequest, context: Context
    ) -> admin_pb2.SetPolicyResponse:
        user = self._admin(context, "set the policy")
        if request.reset:
            if request.HasField("policy") or request.HasField("update_mask"):
                raise Invalid("reset: makes no sense together with a policy; give one of them", field="reset")
            wanted = self._services.policy
        else:
            wanted = policy_of(request, self._engine.settings.policy)
        self._driver.handle(ev.SetPolicy(wanted, None if request.reset else policies.dump(wanted)))
        log_event(log, "set policy", user=user, reset=request.reset, policy=policies.dump(wanted))
        await self._driver.saved()
        # Read again: while it was saved, another administrator may have changed it.
        present = self._engine.settings.policy
        return admin_pb2.SetPolicyResponse(
            policy=policy(present),
            notes=policies.notes(present, self._engine.running.values(), self._engine.queue.firsts()),
        )

    @guarded
    async def SetJobState(  # noqa: N802
        self, request: admin_pb2.SetJobStateRequest, context: Context
    ) -> admin_pb2.SetJobStateResponse:
        caller = self._services.callers.identify(context)
        self._services.callers.require_admin(caller, "moving a job by hand")
        job = self._services.archive.living(convert.job_id(request.job_id))
        state = convert.STATES_BACK.get(request.state)
        why = _reason(request.reason)
        if state is None:
            allowed = ", ".join(f"JOB_STATE_{each.name}" for each in State)
            raise Invalid(f"state: {request.state} is no job state; allowed are {allowed}", field="state")
        if not why:
            raise Invalid("reason: is empty; say why, it is kept in the job's history", field="reason")
        self._driver.handle(ev.Force(job.id, state, f"moved by hand by {caller.owner.name}: {why}"))
        log_event(log, "set state", user=caller.owner.name, job=job.id, state=state.value, reason=why)
        await self._driver.saved()
        return admin_pb2.SetJobStateResponse(job=self._services.show(job, caller, history=True))

    @guarded
    async def Diagnose(  # noqa: N802
        self, request: admin_pb2.DiagnoseRequest, context: Context
    ) -> admin_pb2.DiagnoseResponse:
        self._admin(context, "diagnose")
        findings = await diagnose(self._services)
        return admin_pb2.DiagnoseResponse(
            findings=[admin_pb2.Finding(area=each.area, ok=each.ok, message=each.message) for each in findings]
        )

    def _admin(self, context: Context, what: str) -> str:
        caller = self._services.callers.identify(context)
        self._services.callers.require_admin(caller, what)
        return caller.owner.name

    def _set(self, target: admin_pb2.DrainTarget, reason: str | None) -> list[Device]:
        pool = self._engine.pool
        match target.WhichOneof("target"):
            case "gpu":
                devices = [self._services.device(target.gpu, "target.gpu")]
                self._driver.handle(ev.Drain(tuple(device.uuid for device in devices), reason))
            case "node":
                node = pool.nodes.get(target.node)
                if node is None:
                    known = self._services.node_names()
                    raise NotFound(
                        f"target.node: there is no node {target.node[:80]!r}; there is {known}",
                        reason="NODE_NOT_FOUND",
                        field="target.node",
                    )
                devices = node.devices
                self._driver.handle(ev.Drain((), reason, target.node))
            case _:
                raise Invalid("target: give a gpu or a node", field="target")
        return devices

    def _show(self, devices: list[Device]) -> list[resources_pb2.Gpu]:
        readings = self._services.observer.readings
        return [convert.gpu(self._engine, device, *readings.get(device.uuid, (None, None))) for device in devices]


def _reason(text: str) -> str:
    if len(text) > 500 or not text.isprintable():
        raise Invalid("reason: at most 500 printable characters are allowed", field="reason")
    return text.strip()
