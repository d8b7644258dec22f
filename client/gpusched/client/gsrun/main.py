"""`gsrun command…`: wait for GPUs, run the command on them, give them back. See docs/gsrun.md."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from gpusched.client.address import server_address
from gpusched.client.gsrun import command, exits, front, linux, nested, tree, wire
from gpusched.client.gsrun.line import harmless, put_out
from gpusched.client.gsrun.options import HelpAsked, Misuse, Options, parse
from gpusched.client.usage import UsageError


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script. Ends the process, with the command's status or one of `exits`.

    Args:
        argv: words of the command line without the program's name; None for this process's.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as `script` does, for `python -m` and for callers
    try:
        _run(sys.argv[1:] if argv is None else argv)
    except HelpAsked as asked:
        os._exit(put_out(asked.text or f"gsrun {_version()}\n"))
    except (Misuse, UsageError) as error:
        _die(str(error), exits.USAGE)
    except command.CannotRun as error:
        _die(str(error), error.code)
    except OSError as error:
        _die(f"cannot start: {error}", exits.OWN_FAILURE)
    raise AssertionError("gsrun returned")


def _run(argv: Sequence[str]) -> NoReturn:
    options = parse(argv)
    if options.command:
        command.check(options.command[0])
    if options.detach and not options.dry_run:
        from gpusched.client.gsrun import detach

        detach.run(options, server_address(options.url))
    environment = nested.outer_environment(options)
    if environment is not None:
        _run_inside(options, environment)
    _launch(options, server_address(options.url))


def _run_inside(options: Options, environment: dict[str, str]) -> NoReturn:
    """Become the command, under the lease around us."""
    job_id = os.environ["GPUSCHED_JOB_ID"]
    if options.dry_run:
        used = f"{options.gpus or 'none'} of the GPUs"
        os._exit(put_out(f"would start now, on {used} of job {job_id}, inside which this runs\n"))
    ignored = nested.without_effect(options)
    if ignored and not options.quiet:
        _complain(f"inside job {job_id} this has no effect: {', '.join(ignored)}")
    if options.verbose:
        visible = environment["CUDA_VISIBLE_DEVICES"]
        _complain(f"inside job {job_id}: using {f'its GPUs ({visible})' if visible else 'none of its GPUs'}")
    os.environ.update(environment)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and the command would inherit that
    command.become(options.command)


def _launch(options: Options, address: str) -> NoReturn:
    """Fork the holder, while this process is still small and has one thread, and be the front."""
    _open_low_fds()
    fds = _inherited_fds()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some daemons have it, children would end untold
    signals = front.passed_on()
    spared = {child.identity for pid in tree.children_of(os.getpid()) if (child := tree.look_up(pid))}
    pidfd = os.pidfd_open(os.getpid())
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*signals, signal.SIGCHLD})
    front_pid = os.getpid()
    holder_pid = os.fork()
    if holder_pid == 0:
        mine.close()
        _hold(options, address, front_pid, pidfd, its, fds, signals, before)
    its.close()
    os.close(pidfd)
    if not options.dry_run:
        _let_go_of_streams(fds)
    front.Front(options, holder_pid, mine, signals, spared).run()


def _hold(
    options: Options,
    address: str,
    front_pid: int,
    front_pidfd: int,
    sock: socket.socket,
    fds: list[int],
    signals: set[int],
    mask: set[int],
) -> NoReturn:
    """Be the holder. See `Holder` for the arguments; `mask` is the signal mask that the command is to have."""
    try:
        from gpusched.client.gsrun.holder import Holder

        os.setpgid(0, 0)
        linux.set_process_name("gsrun-holder")
        holder = Holder(options, address, front_pid, front_pidfd, sock, fds, signals)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        holder.run()
    except BaseException as error:
        # The front ends the command when we are gone, and says so; here is why, for a report.
        text = f"gsrun: internal error: {type(error).__name__}: {error}"
        wire.Peer(sock).send(wire.ERROR, text)
        if os.environ.get("GPUSCHED_DEBUG"):
            sys.excepthook(type(error), error, error.__traceback__)
    os._exit(exits.OWN_FAILURE)


def _open_low_fds() -> None:
    """Have something at 0, 1 and 2, or a socket of ours would land there and the command would read it."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        os.set_inheritable(fd, True)
        fd = os.dup(fd)
    os.close(fd)


def _inherited_fds() -> list[int]:
    """Descriptors above 2 that whoever started us meant for the command, such as those of `<(…)`."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        fd = int(name)
        try:
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
        except OSError:
            continue  # the listing's own
    return found


def _let_go_of_streams(fds: list[int]) -> None:
    """Only stderr is the front's business. A pipe into or out of the command must not be held open by us."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.close(null)
    for fd in fds:
        os.close(fd)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gpusched")
    except PackageNotFoundError:
        return "(not installed)"


def _complain(text: str) -> None:
    # A command's or an option's name may hold anything.
    shown = "\n".join(map(harmless, text.split("\n")))
    try:
        os.write(2, f"gsrun: {shown}\n".encode("utf-8", "replace"))
    except OSError:
        pass


def _die(text: str, code: int) -> NoReturn:
    _complain(text)
    os._exit(code)
