"""What all servicers share."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpusched.scheduler.archive import Archive
from gpusched.scheduler.core.errors import Invalid, NotFound
from gpusched.scheduler.core.jobs import Job
from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.pool import Device
from gpusched.scheduler.desk import Desk
from gpusched.scheduler.driver import Driver
from gpusched.scheduler.launcher import Launcher
from gpusched.scheduler.observer import Observer
from gpusched.scheduler.ports import Store
from gpusched.scheduler.rpc import convert
from gpusched.scheduler.rpc.callers import Caller, Callers
from gpusched.scheduler.rpc.streams import Streams
from gpusched.scheduler.rpc.watchers import Watchers
from gpusched.scheduler.run_tokens import RunTokens
from gpusched.v1 import job_pb2


@dataclass(slots=True)
class About:
    """What the server tells of itself."""

    version: str
    address: str
    mode: str
    node: str
    user: str
    uid: int
    pid: int
    admin_socket: str
    started_at: float


@dataclass(slots=True)
class Services:
    """
    Attributes:
        state_id: names the state that keeps the jobs; another id is another scheduler.
        policy: that of the configuration, to which an administrator may return.
        streams: those that are open.
    """

    driver: Driver
    desk: Desk
    observer: Observer
    watchers: Watchers
    callers: Callers
    about: About
    archive: Archive
    launcher: Launcher
    tokens: RunTokens
    store: Store
    state_id: str
    policy: PolicySettings = field(default_factory=PolicySettings)
    streams: Streams = field(default_factory=Streams)

    @property
    def stopping(self) -> bool:
        """The server goes away; ends of streams mean nothing any more."""
        return self.streams.stopping

    def show(self, job: Job, caller: Caller, *, history: bool = False) -> job_pb2.Job:
        """A job as a caller may see it; with what happened to it if `history`."""
        arguments = self.callers.sees_arguments(caller, job)
        lines = self.archive.history(job) if history else None
        message = convert.job(self.driver.engine, job, arguments=arguments, history=lines, now=self.driver.now())
        for attempt in message.attempts:
            attempt.output_path = str(self.launcher.output_path(job, attempt.number))
        return message

    def device(self, text: str, field: str) -> Device:
        """A GPU by uuid, index on the scheduler's own node, or "node:index". Raises Invalid, NotFound."""
        pool = self.driver.engine.pool
        if text in pool.devices:
            return pool.devices[text]
        name, _, index = text.rpartition(":")
        if not (index.isascii() and index.isdigit() and len(index) <= 9):
            raise Invalid(
                f"{field}: {text[:80]!r} names no GPU; give an index such as 3, node:index, or a uuid", field=field
            )
        node = pool.nodes.get(name or self.about.node)
        for device in node.devices if node else []:
            if device.info.index == int(index):
                return device
        if node is not None:
            there = f"node {node.info.name} has {len(node.devices)}, from 0 up"
        else:
            there = f"there is no node {name[:80]!r}; there is {self.node_names()}"
        raise NotFound(f"{field}: there is no GPU {text[:80]!r}; {there}", reason="GPU_NOT_FOUND", field=field)

    def node_names(self) -> str:
        """The nodes there are, for error texts."""
        names = list(self.driver.engine.pool.nodes)
        return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
