"""Wires everything: the only module that knows which concrete parts make up the server."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from gpusched.scheduler import config as configuration
from gpusched.scheduler import daemon, logs
from gpusched.scheduler.inventory.specs import parse_spec
from gpusched.scheduler.locks import GpuLocks, StartRefused, StateLock, lock_gpus, lock_state_dir
from gpusched.scheduler.ports import Inventory, InventoryError, StoreError

log = logging.getLogger("gpusched.main")

HOST = "127.0.0.1"
#: Seconds that open calls have to end by themselves when the server stops.
STOP_GRACE = 1.0
#: Objects more than before at which the garbage collector looks at young ones, and how often at older ones with them.
GC_THRESHOLDS = (20_000, 20, 50)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m gpusched.scheduler serve|stop|simulate …`. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["simulate"]:
        from gpusched.scheduler.simulate import command

        return command.main(arguments[1:])
    try:
        config = configuration.load(arguments)
    except configuration.ConfigError as error:
        print(f"gpusched: {error}", file=sys.stderr)
        return 2
    if config.command == "stop":
        return daemon.stop(config.state_dir, config.timeout, config.address, config.named_by)
    try:
        if config.simulate:
            parse_spec(config.simulate)  # before the state directory is looked at: a wrong setting is said first
    except ValueError as error:
        print(f"gpusched: {error}", file=sys.stderr)
        return 2
    return serve(config)


def serve(config: configuration.Config) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    # Before anything that starts threads is imported.
    ready = daemon.detach(config.state_dir / "server.log") if config.detach else daemon.ReadyPipe.foreground()
    logs.setup(config.log_level, config.log_format)
    try:
        with lock_state_dir(config.state_dir) as lock, asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(config, lock, ready))
    except (StartRefused, InventoryError, StoreError) as error:
        ready.failed(str(error))
        return 1
    except Exception as error:
        log.exception("the server failed")
        ready.failed(f"the scheduler failed: {error}")
        return 1
    return 0


async def _serve(config: configuration.Config, lock: StateLock, ready: daemon.ReadyPipe) -> None:
    # Nearly all that is made until we serve stays for good: walking it again and again would only take time.
    gc.disable()
    # Heavy imports come after the fork of --detach.
    from gpusched.scheduler.assembly import Assembly
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
        assembly = Assembly(config, inventory, f"{HOST}:{port}", port, _version())
        try:
            await assembly.start()
            services = assembly.services
            await server.start(services, inventory if inventory.mode == "simulated" else None)  # type: ignore[arg-type]
            assembly.open_for_business()
            about = services.about
            lock.announce(about.address)
            logs.log_event(log, "serving", address=about.address, mode=about.mode, node=about.node, pid=about.pid)
            ready.ready(about.address)
            _tune_collector()
            await stop.wait()
            logs.log_event(log, "stopping", running=len(services.driver.engine.running))
            await assembly.say_goodbye()
            await server.stop(STOP_GRACE)
        finally:
            await assembly.close()
    finally:
        gpu_locks.release()
        inventory.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop, which costs a call less than asyncio's own, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _tune_collector() -> None:
    """Look for reference cycles more rarely: calls make hardly any, and what is there from the start stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    gc.enable()


def _open_inventory(config: configuration.Config) -> tuple[Inventory, GpuLocks]:
    from gpusched.scheduler.inventory.choose import choose
    from gpusched.scheduler.inventory.nvml import DEFAULT_IGNORED

    ignored = DEFAULT_IGNORED | frozenset(config.ignore_processes)
    inventory = choose(config.gpu_mode, config.simulate, socket.gethostname(), ignored)
    uuids = [device.uuid for node in inventory.discover() for device in node.devices if not device.simulated]
    return inventory, lock_gpus(uuids)


def _version() -> str:
    try:
        return version("gpusched")
    except PackageNotFoundError:
        return "0+unknown"
