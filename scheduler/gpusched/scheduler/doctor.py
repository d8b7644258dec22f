"""Looks for damage and contradictions: in the store, in the queue, on the devices."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpusched.scheduler.core import invariants
from gpusched.scheduler.core.explain import device_text
from gpusched.scheduler.core.pool import DeviceState
from gpusched.scheduler.ports import StoreError

if TYPE_CHECKING:
    from gpusched.scheduler.rpc.services import Services

#: Of so many jobs it is said what is wrong with what is kept of them.
_MOST = 5
_WELL = (DeviceState.FREE, DeviceState.ALLOCATED, DeviceState.CHECKING)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: its area, whether it is well, and a sentence."""

    area: str
    ok: bool
    message: str


async def diagnose(services: Services) -> list[Finding]:
    """All findings, the good ones too."""
    engine = services.driver.engine
    findings = []
    if engine.halted is not None:
        findings.append(Finding("store", False, engine.halted))
    try:
        damage = await asyncio.get_running_loop().run_in_executor(None, _look_at_store, services)
    except StoreError as error:
        damage = [str(error)]
    findings += [Finding("store", False, sentence) for sentence in damage]
    if not damage:
        findings.append(Finding("store", True, "the store is sound and agrees with itself"))
    try:
        invariants.check(engine)
    except AssertionError as error:
        findings.append(Finding("queue", False, f"an invariant is broken: {error}"))
    else:
        text = f"{len(engine.running)} running and {len(engine.queue)} waiting jobs agree with queue and devices"
        findings.append(Finding("queue", True, text))
    for device in engine.pool.devices.values():
        state = engine.pool.state(device)
        if state not in _WELL:
            said = device_text(engine, device) or state.value
            name = f"GPU {device.info.index} on {device.info.node}"
            said = said.removeprefix(f"GPU {device.info.index}: ").removeprefix(f"{state.value}: ")
            why = "" if said == state.value else f": {said}"
            findings.append(Finding("devices", False, f"{name} is {state.value}{why}"))
    if not any(finding.area == "devices" for finding in findings):
        findings.append(Finding("devices", True, f"all {len(engine.pool.devices)} GPUs are in service"))
    for job in engine.queue:
        asked, usable = job.request.gpus, engine.pool.usable(job.request)
        if usable < asked:
            what = "GPU" if asked == 1 else "GPUs"
            text = f"job {job.id} asks for {asked} {what} that would do, of which there are {usable} here"
            findings.append(Finding("queue", False, text))
    if engine.absent:
        text = f"{len(engine.absent)} jobs have not come back since the restart"
        findings.append(Finding("server", False, text))
    if engine.paused is not None:
        findings.append(Finding("server", False, f"scheduling is paused: {engine.paused}"))
    return findings


def _look_at_store(services: Services) -> list[str]:
    """What is wrong with what is kept, a sentence each."""
    damage = services.store.check()
    if not damage:
        unreadable = services.archive.unreadable()
        damage = unreadable[:_MOST]
        if len(unreadable) > _MOST:
            damage.append(f"{len(unreadable) - _MOST} more jobs are kept in such a form")
    return damage
