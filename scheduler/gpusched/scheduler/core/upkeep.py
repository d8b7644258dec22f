"""What happens to the scheduler itself and to its devices: what administrators set, and what observers see."""

from __future__ import annotations

from dataclasses import replace

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core import overuse, recovery
from gpusched.scheduler.core.duties import Duties
from gpusched.scheduler.core.effects import NoticeKind
from gpusched.scheduler.core.model import Condition


class Upkeep(Duties):
    """Duties, and the handlers of these events."""

    # -- the scheduler -----------------------------------------------------------------------------------

    def _on_halt(self, event: ev.Halt, now: float) -> None:
        self.halted = event.reason
        self._out.append(do.QUEUE_CHANGED)
        self.pass_wanted = True

    def _on_pause(self, event: ev.Pause, now: float) -> None:
        self.paused = event.reason
        self._changes.settings[recovery.PAUSED] = event.reason
        self._out.append(do.QUEUE_CHANGED)
        self.pass_wanted = True

    def _on_set_policy(self, event: ev.SetPolicy, now: float) -> None:
        self._changes.settings[recovery.POLICY] = event.kept
        if event.policy == self.settings.policy:
            return  # nothing is ordered anew, and what was promised holds
        waiting = list(self.queue)
        self.settings = replace(self.settings, policy=event.policy)
        self.usage.set_half_life(event.policy.half_life, now)
        self.queue = self._make_queue()
        if self.quotas is not None:
            for job in [*self.running.values(), *(self.jobs[each] for each in self.claims)]:
                self.quotas.take(job.spec.owner.name, job.request.gpus)
        for job in waiting:
            job.starved = False
            self._enqueue(job)
        self.queue.arrange(now)
        self._out.append(do.QUEUE_CHANGED)
        self.pass_wanted = True

    # -- devices -----------------------------------------------------------------------------------------

    def _on_observe(self, event: ev.Observe, now: float) -> None:
        changed = []
        for seen in event.seen:
            device = self.pool.devices[seen.uuid]
            condition, message = seen.condition, seen.message
            holders = device.holders
            if condition is Condition.FOREIGN:
                for holder in holders:
                    if holder not in device.warned:
                        device.warned.add(holder)
                        self._out.append(do.Notify(holder, NoticeKind.GPU_FOREIGN, message))
            if device.holder is not None and condition is not Condition.UNHEALTHY:
                condition, message = Condition.CLEAN, ""
            if device.shares and overuse.note(self, device, seen.taken, now):
                changed.append(seen.uuid)
            before = device.condition
            if not self.pool.observe(seen.uuid, condition, message):
                continue
            changed.append(seen.uuid)
            if condition is Condition.UNHEALTHY and before is not Condition.UNHEALTHY:
                self._out += [do.Notify(holder, NoticeKind.GPU_UNHEALTHY, message) for holder in holders]
        if changed:
            self._out += [do.DevicesChanged(tuple(dict.fromkeys(changed))), do.QUEUE_CHANGED]
            self.pass_wanted = True

    def _on_drain(self, event: ev.Drain, now: float) -> None:
        if event.node:
            self.pool.drain_node(event.node, event.reason)
            devices = tuple(device.uuid for device in self.pool.nodes[event.node].devices)
            self._changes.settings[recovery.DRAINED_NODE + event.node] = event.reason
        else:
            self.pool.drain(event.devices, event.reason)
            devices = event.devices
            for uuid in devices:
                self._changes.settings[recovery.DRAINED + uuid] = event.reason
        if event.reason is not None:
            what = f"node {event.node}" if event.node else "a GPU of this lease"
            told = {holder for uuid in devices for holder in self.pool.devices[uuid].holders}
            for holder in sorted(told):
                text = f"{what} is taken out of service ({event.reason}); finish when you can"
                self._out.append(do.Notify(holder, NoticeKind.DRAIN, text))
        self._out += [do.DevicesChanged(devices), do.QUEUE_CHANGED]
        self.pass_wanted = True
