"""Wires everything: the only module that knows which concrete parts make up the server."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from gpusched.scheduler import config as configuration
from gpusched.scheduler import daemon, logs
from gpusched.scheduler.locks import GpuLocks, StartRefused, StateLock, lock_gpus, lock_state_dir
from gpusched.scheduler.ports import Inventory, InventoryError

if TYPE_CHECKING:
    from gpusched.scheduler.rpc.services import Services

log = logging.getLogger("gpusched.main")

HOST = "127.0.0.1"
#: Seconds that open calls have to end by themselves when the server stops.
STOP_GRACE = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m gpusched.scheduler serve|stop …`. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        config = configuration.load(arguments)
    except configuration.ConfigError as error:
        print(f"gpusched: {error}", file=sys.stderr)
        return 2
    if config.command == "stop":
        return daemon.stop(config.state_dir, config.timeout)
    return serve(config)


def serve(config: configuration.Config) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    if config.detach:
        # Before anything that starts threads is imported.
        ready = daemon.detach(config.state_dir / "server.log")
    else:
        ready = daemon.ReadyPipe.foreground()
    logs.setup(config.log_level, config.log_format)
    try:
        with lock_state_dir(config.state_dir) as lock:
            asyncio.run(_serve(config, lock, ready))
    except (StartRefused, InventoryError) as error:
        ready.failed(str(error))
        return 1
    except Exception as error:
        log.exception("the server failed")
        ready.failed(f"the scheduler failed: {error}")
        return 1
    return 0


async def _serve(config: configuration.Config, lock: StateLock, ready: daemon.ReadyPipe) -> None:
    # Heavy imports come after the fork of --detach.
    from gpusched.scheduler.rpc.server import RpcServer

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    inventory, gpu_locks = _open_inventory(config)
    try:
        server = RpcServer()
        try:
            port = server.bind(HOST, config.port)
        except OSError:
            raise StartRefused(
                f"port {config.port} on {HOST} is taken, perhaps by another scheduler: "
                f"choose another one with --port or GPUSCHED_PORT"
            ) from None
        services, start, close = _build(config, inventory, f"{HOST}:{port}", port)
        await start()
        await server.start(services, inventory if inventory.mode == "simulated" else None)  # type: ignore[arg-type]
        lock.announce(services.about.address)
        about = services.about
        logs.log_event(log, "serving", address=about.address, mode=about.mode, node=about.node, pid=about.pid)
        ready.ready(about.address)
        await stop.wait()
        logs.log_event(log, "stopping", running=len(services.driver.engine.running))
        await _stop(services, server.stop)
        await close()
    finally:
        gpu_locks.release()
        inventory.close()


def _open_inventory(config: configuration.Config) -> tuple[Inventory, GpuLocks]:
    from gpusched.scheduler.inventory.choose import choose
    from gpusched.scheduler.inventory.nvml import DEFAULT_IGNORED

    ignored = DEFAULT_IGNORED | frozenset(config.ignore_processes)
    inventory = choose(config.gpu_mode, config.simulate, socket.gethostname(), ignored)
    uuids = [device.uuid for node in inventory.discover() for device in node.devices if not device.simulated]
    return inventory, lock_gpus(uuids)


def _build(config: configuration.Config, inventory: Inventory, address: str, port: int):  # type: ignore[no-untyped-def]
    """The parts, wired. Returns the services, and functions that start and end the background tasks."""
    from gpusched.scheduler.admin_token import AdminTokens
    from gpusched.scheduler.clock import Clock
    from gpusched.scheduler.core.engine import Engine
    from gpusched.scheduler.core.settings import Settings
    from gpusched.scheduler.desk import Desk
    from gpusched.scheduler.driver import Driver
    from gpusched.scheduler.identity import PeerIdentifier, user_name
    from gpusched.scheduler.journal import Journal
    from gpusched.scheduler.observer import Observer
    from gpusched.scheduler.rpc.callers import Callers
    from gpusched.scheduler.rpc.services import About, Services
    from gpusched.scheduler.rpc.watchers import Watchers

    clock = Clock()
    nodes = inventory.discover()
    settings = Settings(
        confirm_within=config.confirm_within,
        end_grace=config.grace,
        set_aside_after=config.set_aside_after,
    )
    engine = Engine(nodes, settings)
    driver = Driver(engine, clock.now)
    desk = Desk(engine)
    observer = Observer(driver, inventory, config.sample_interval)
    watchers = Watchers()
    # The order counts: who held a device is remembered before its next holder is told.
    for listener in (Journal(engine).on_effect, observer.on_effect, desk.on_effect, watchers.on_effect):
        driver.listen(listener)
    observer.watch(watchers.on_reading)

    uid = os.getuid()
    tokens = AdminTokens(config.state_dir / "admin.sock", frozenset({0, uid}), clock.now)
    peers = PeerIdentifier(port)
    about = About(
        version=_version(),
        address=address,
        mode=inventory.mode,
        node=next(node.name for node in nodes if node.local),
        user=user_name(uid),
        uid=uid,
        pid=os.getpid(),
        admin_socket=str(tokens.path),
        started_at=clock.now(),
    )
    services = Services(
        driver, desk, observer, watchers, Callers(peers, tokens, uid), about, state_id=secrets.token_hex(8)
    )
    tasks: list[asyncio.Task[None]] = []

    async def start() -> None:
        await observer.read_all()
        await tokens.start()
        about.admin_socket = str(tokens.path)
        tasks.extend([asyncio.create_task(desk.publish()), asyncio.create_task(observer.run())])

    async def close() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        observer.close()
        await tokens.stop()
        peers.close()

    return services, start, close


async def _stop(services: Services, stop_server) -> None:  # type: ignore[no-untyped-def]
    """Tell every holder, then go. What streams do from here on means nothing: leases are not ended by our leaving."""
    from gpusched.scheduler.core.effects import NoticeKind

    services.driver.stop()
    services.desk.notify_all(NoticeKind.SERVER_STOPPING, "the scheduler is stopping; what you hold stays yours")
    # Let the notices go out.
    await asyncio.sleep(0.05)
    services.stopping = True
    await stop_server(STOP_GRACE)


def _version() -> str:
    try:
        return version("gpusched")
    except PackageNotFoundError:
        return "0+unknown"
