"""The parts of a server, wired: made, started and ended in the right order."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace

from gpusched.scheduler.admin_token import AdminTokens
from gpusched.scheduler.archive import Archive
from gpusched.scheduler.clock import Clock, clock_time
from gpusched.scheduler.codec import job_of
from gpusched.scheduler.config import Config
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.model import NodeInfo
from gpusched.scheduler.core.records import Batch, Boot
from gpusched.scheduler.core.recovery import CLOCK
from gpusched.scheduler.core.settings import Settings
from gpusched.scheduler.core.states import EPOCH_BITS
from gpusched.scheduler.desk import Desk
from gpusched.scheduler.driver import Driver
from gpusched.scheduler.identity import PeerIdentifier, user_name
from gpusched.scheduler.journal import Journal, tell_return
from gpusched.scheduler.launcher import Launcher
from gpusched.scheduler.logs import log_event
from gpusched.scheduler.observer import Observer
from gpusched.scheduler.policies import in_force
from gpusched.scheduler.ports import Inventory, Store, StoreError
from gpusched.scheduler.pruner import prune_for_ever
from gpusched.scheduler.rpc.callers import Callers
from gpusched.scheduler.rpc.services import About, Services
from gpusched.scheduler.rpc.watchers import Watchers
from gpusched.scheduler.run_tokens import RunTokens
from gpusched.scheduler.runner.model import LOGS
from gpusched.scheduler.runner.runner import ProcessRunner
from gpusched.scheduler.store.database import DatabaseStore
from gpusched.scheduler.store.sqlite import sqlite_url
from gpusched.scheduler.usage_keeper import UsageKeeper, restore_usage

log = logging.getLogger("gpusched.main")

#: Key of the setting that the secrets of batch runs are made with.
RUN_KEY = "run-key"


class Assembly:
    """
    Args:
        config: all settings.
        inventory: the GPUs.
        address: `host:port` that is told to others.
        port: the port of it.
        version: of the software.
    """

    services: Services

    def __init__(self, config: Config, inventory: Inventory, address: str, port: int, version: str) -> None:
        self._config = config
        self._inventory = inventory
        self._address = address
        self._port = port
        self._version = version
        self._clock = Clock()
        self._tasks: list[asyncio.Task[None]] = []
        self._store: Store | None = None
        self._peers: PeerIdentifier | None = None
        self._tokens: AdminTokens | None = None
        self._observer: Observer | None = None
        self._runner: ProcessRunner | None = None

    async def start(self) -> None:
        """Make everything, take over what an earlier run left, and read the GPUs once. Raises StoreError, OSError."""
        config, clock = self._config, self._clock
        store = self._store = DatabaseStore(sqlite_url(config.state_dir / "state.db"))
        boot = store.open()
        run_tokens = RunTokens(_run_key(store, boot))
        engine = _restored(config, self._inventory, boot, clock)
        driver = Driver(engine, clock.now, store)
        desk = Desk(engine)
        watchers = Watchers()
        observer = self._observer = Observer(driver, self._inventory, config.sample_interval)
        log_dir = config.state_dir / LOGS
        log_dir.mkdir(mode=0o700, exist_ok=True)
        launcher = Launcher(driver, run_tokens, self._address, boot.state_id, log_dir, observer.peak_memory)
        # A look at a GPU is no telling, so it need not wait for the save; the pass then has its answer.
        driver.listen(observer.on_effect, do.CheckDevices, early=True)
        driver.listen(UsageKeeper(engine, clock.now).on_effect, do.Ended, do.Withdrawn, do.QueueChanged, early=True)
        driver.listen(Journal(engine).on_effect, *Journal.KINDS)
        driver.listen(desk.on_effect, *Desk.KINDS)
        driver.listen(watchers.on_effect, *Watchers.KINDS)
        driver.listen(launcher.on_effect, do.StartRun)
        observer.watch(watchers.on_reading)

        uid = os.getuid()
        tokens = self._tokens = AdminTokens(config.state_dir / "admin.sock", frozenset({0, uid}), clock.now)
        await tokens.start()
        peers = self._peers = PeerIdentifier(self._port)
        about = About(
            version=self._version,
            address=self._address,
            mode=self._inventory.mode,
            node=next(name for name, node in engine.pool.nodes.items() if node.info.local),
            user=user_name(uid),
            uid=uid,
            pid=os.getpid(),
            admin_socket=str(tokens.path),
            started_at=clock.now(),
        )
        runner = self._runner = ProcessRunner(launcher.on_failed, config.state_dir / "agent.log", launcher.on_report)
        await runner.start()
        launcher.runner = runner
        self.services = Services(
            driver=driver,
            desk=desk,
            observer=observer,
            watchers=watchers,
            callers=Callers(peers, tokens, uid),
            about=about,
            archive=Archive(engine, store),
            launcher=launcher,
            tokens=run_tokens,
            store=store,
            state_id=boot.state_id,
            policy=config.policy,
        )
        await observer.read_all()
        log_event(
            log,
            "restored",
            state=boot.state_id,
            start=boot.starts,
            running=len(engine.running),
            queued=len(engine.queue),
        )

    def open_for_business(self) -> None:
        """Start what goes on in the background, and the first pass."""
        services = self.services
        self._tasks = [
            asyncio.create_task(services.desk.publish()),
            asyncio.create_task(services.observer.run()),
            asyncio.create_task(tell_return(services.driver.engine, services.driver.now)),
            asyncio.create_task(services.launcher.queue_again_what_never_began()),
            asyncio.create_task(prune_for_ever(services.store, services.launcher, self._clock.now, self._config.keep)),
        ]
        services.driver.start()

    async def say_goodbye(self) -> None:
        """Tell every holder that the server goes. What their streams do from here on means nothing."""
        services = self.services
        services.driver.stop()
        services.desk.notify_all(do.NoticeKind.SERVER_STOPPING, "the scheduler is stopping; what you hold stays yours")
        # Let the notices go out.
        await asyncio.sleep(0.05)
        services.streams.stop()

    async def close(self) -> None:
        """End everything that was started, as far as it was."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._observer is not None:
            self._observer.close()
        if self._runner is not None:
            await self._runner.close()
        if hasattr(self, "services"):
            await self.services.driver.close()
        if self._tokens is not None:
            await self._tokens.stop()
        if self._peers is not None:
            self._peers.close()
        if self._store is not None:
            self._store.close()


def _run_key(store: Store, boot: Boot) -> bytes:
    key = boot.settings.get(RUN_KEY)
    if key is None:
        key = RunTokens.new_key()
        store.commit(Batch(settings={RUN_KEY: key}, sync=True))
    return bytes.fromhex(key)


def _labelled(nodes: tuple[NodeInfo, ...], labels: dict[str, str]) -> tuple[NodeInfo, ...]:
    """The nodes, this machine with the labels that it was given."""
    return tuple(replace(info, labels=info.labels | labels) if info.local else info for info in nodes)


def _furnished(nodes: tuple[NodeInfo, ...], cpus: int, memory: int) -> tuple[NodeInfo, ...]:
    """The nodes, each with so many cores and so much memory as jobs may be given, where that was said."""
    return tuple(
        replace(info, cpus=cpus or info.cpus, memory_bytes=memory or info.memory_bytes) if cpus or memory else info
        for info in nodes
    )


def _restored(config: Config, inventory: Inventory, boot: Boot, clock: Clock) -> Engine:
    """The engine, with what an earlier run of the server left. Raises StoreError."""
    settings = Settings(
        confirm_within=config.confirm_within,
        end_grace=config.grace,
        set_aside_after=config.set_aside_after,
        max_queue=config.max_queue,
        max_running=config.max_running,
        default_limit=config.default_time_limit or None,
        max_limit=config.max_time_limit or None,
        policy=in_force(config.policy, boot.settings),
        window=config.window,
        hold_after_restart=min(2.0, config.window),
        share_between_users=config.share_between_users,
    )
    first_epoch = (boot.starts << EPOCH_BITS) + 1
    nodes = _furnished(_labelled(inventory.discover(), dict(config.labels)), config.cpus, config.memory)
    engine = Engine(nodes, settings, first_job=boot.next_job, first_epoch=first_epoch)
    engine.show_time = clock_time
    try:
        jobs = [job_of(record) for record in boot.jobs]
    except ValueError as error:
        raise StoreError(str(error), passing=False) from None
    shift = clock.ahead_of(boot.settings.get(CLOCK))
    engine.restore(jobs, boot.settings, clock.now(), shift=shift, mark=clock.mark())
    restore_usage(engine, boot.settings, clock.now(), shift)
    return engine
