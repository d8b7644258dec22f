"""gsrun around a command: what passes through, and what it exits with."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gpusched.v1 import job_pb2, scheduler_pb2, scheduler_pb2_grpc
from gsrun.conftest import GPUS
from gsrun.running import GSRUN, Gsrun, state_of
from support.server import Server
from support.waiting import wait_until

Start = Callable[..., Gsrun]
Stub = scheduler_pb2_grpc.SchedulerStub


def ended_job(stub: Stub, name: str) -> job_pb2.Job:
    """The newest job of a name that has ended."""
    request = scheduler_pb2.ListJobsRequest(filter=scheduler_pb2.JobFilter(name=name, include_ended=True))
    return wait_until(lambda: next((job for job in stub.ListJobs(request).jobs if job.HasField("ended_at")), None))


def running_jobs(stub: Stub) -> list[job_pb2.Job]:
    states = [job_pb2.JOB_STATE_RUNNING]
    return list(stub.ListJobs(scheduler_pb2.ListJobsRequest(filter=scheduler_pb2.JobFilter(states=states))).jobs)


def test_command_sees_its_gpus(gsrun: Start) -> None:
    run = gsrun("-n", "2", "sh", "-c", 'echo "$CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER"; env')
    assert run.wait() == 0
    assert run.out.splitlines()[0] == "0,1 0,1 PCI_BUS_ID"
    variables = dict(line.split("=", 1) for line in run.out.splitlines()[1:] if "=" in line)
    assert len(variables["GPUSCHED_GPUS"].split(",")) == 2
    assert variables["GPUSCHED_JOB_ID"]
    assert run.err == ""


def test_secret_does_not_reach_the_command(gsrun: Start) -> None:
    run = gsrun("env")
    assert run.wait() == 0
    assert "TOKEN" not in run.out.upper()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("kill -SEGV $$", 139),
        ("kill -HUP $$", 129),
        ("kill -PIPE $$", 141),
    ],
)
def test_exit_status(gsrun: Start, script: str, code: int) -> None:
    assert gsrun("sh", "-c", f"ulimit -c 0; {script}").wait() == code


def test_death_by_sigint_is_death_by_sigint(gsrun: Start) -> None:
    assert gsrun("sh", "-c", "kill -INT $$").wait() == -signal.SIGINT


def test_history_has_the_outcome(gsrun: Start, stub: Stub) -> None:
    gsrun("--name", "outcome three", "sh", "-c", "exit 3").wait()
    job = ended_job(stub, "outcome three")
    assert (job.state, job.outcome.exit_status) == (job_pb2.JOB_STATE_FAILED, 3)
    gsrun("--name", "outcome term", "sh", "-c", "kill -TERM $$").wait()
    job = ended_job(stub, "outcome term")
    assert (job.state, job.outcome.signal) == (job_pb2.JOB_STATE_FAILED, signal.SIGTERM)


@pytest.mark.slow
def test_gpus_are_free_when_it_returns(gsrun: Start, stub: Stub) -> None:
    """A script's next line must find them, not find them a moment later."""
    for _ in range(5):
        assert gsrun("-n", str(GPUS), "--immediate", "true").wait() == 0


def test_name_of_the_job_is_the_command(gsrun: Start, stub: Stub) -> None:
    run = gsrun("/bin/sleep", "100")
    job = wait_until(lambda: next(iter(running_jobs(stub)), None))
    assert (job.name, list(job.command)) == ("sleep", ["/bin/sleep", "100"])
    assert job.holder_pid == run.holder
    run.signal(signal.SIGTERM)
    assert run.wait() == 143


def test_stdin_and_stdout_pass_through(idle: Server) -> None:
    done = subprocess.run([*GSRUN, "tr", "a-z", "A-Z"], input=b"hello\n", capture_output=True, env=idle.env, check=True)
    assert (done.stdout, done.stderr) == (b"HELLO\n", b"")


def test_other_descriptors_pass_through(idle: Server) -> None:
    """`gsrun cat <(echo hi)` of bash."""
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(GSRUN)} cat <(echo hi) 7<<<seven /dev/fd/7"], capture_output=True, env=idle.env
    )
    assert (done.returncode, done.stdout) == (0, b"hi\nseven\n")


def test_no_descriptor_of_ours_leaks(idle: Server) -> None:
    done = subprocess.run([*GSRUN, "ls", "/proc/self/fd"], capture_output=True, env=idle.env, stdin=subprocess.DEVNULL)
    assert done.stdout.split() == [b"0", b"1", b"2", b"3"]  # 3: ls reading that directory


def test_closed_standard_streams(idle: Server) -> None:
    """Our own descriptors must not take the place of a closed stdin."""
    line = f"{' '.join(GSRUN)} sh -c 'cat; echo out' <&- >{{}} 2>&-"
    path = idle.state_dir / "closed"
    assert subprocess.run(["sh", "-c", line.format(path)], env=idle.env).returncode == 0
    assert path.read_text() == "out\n"


def test_reader_that_leaves_early(idle: Server) -> None:
    """`gsrun yes | head -1`: the command dies of SIGPIPE as it would alone."""
    script = f"{' '.join(GSRUN)} yes | head -1; echo ${{PIPESTATUS[*]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, env=idle.env, timeout=20)
    assert (done.stdout, done.stderr) == (b"y\n141 0\n", b"")


def test_pipe_ends_when_the_command_ends_it(gsrun: Start, idle: Server) -> None:
    """A command that closes its stdout and runs on: the reader sees the end, gsrun does not hold it open."""
    read, write = os.pipe()
    run = gsrun("sh", "-c", "exec >/dev/null; exec sleep 100", stdout=write)
    os.close(write)
    with open(read, "rb") as pipe:
        assert pipe.read() == b""
    assert run.process.poll() is None
    run.signal(signal.SIGTERM)
    run.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_signals_to_gsrun_reach_the_command(gsrun: Start, number: signal.Signals) -> None:
    script = f"trap 'echo got {number.name}; exit 9' {number.name[3:]}; echo ready; while :; do sleep 0.02; done"
    run = gsrun("bash", "-c", script)
    run.wait_for_out("ready")
    run.signal(number)
    assert run.wait() == 9
    assert f"got {number.name}" in run.out


def test_signals_to_the_holder_reach_the_command(gsrun: Start) -> None:
    run = gsrun("bash", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done")
    run.wait_for_out("ready")
    os.kill(run.holder, signal.SIGTERM)
    assert run.wait() == 9


def test_command_stopped_and_continued_by_signals(gsrun: Start) -> None:
    run = gsrun("sleep", "100")
    holder = run.holder
    command = wait_until(lambda: next(iter(children(holder)), 0))
    run.signal(signal.SIGTSTP)
    wait_until(lambda: state_of(command) == "T" and state_of(run.front) == "T")
    assert state_of(holder) != "T"
    run.signal(signal.SIGCONT)
    wait_until(lambda: state_of(command) == "S" and state_of(run.front) == "S")
    os.kill(command, signal.SIGSTOP)
    wait_until(lambda: state_of(run.front) == "T")
    os.kill(command, signal.SIGCONT)  # the command alone: gsrun comes along
    wait_until(lambda: state_of(run.front) == "S")
    run.signal(signal.SIGTERM)
    assert run.wait() == 143


def test_ignored_signals_stay_ignored(idle: Server) -> None:
    """`nohup gsrun …`: neither gsrun nor the command dies of SIGHUP."""
    script = f"trap '' HUP; exec {' '.join(GSRUN)} sh -c 'kill -HUP $$; kill -HUP $PPID; echo alive'"
    done = subprocess.run(["bash", "-c", script], capture_output=True, env=idle.env)
    assert (done.returncode, done.stdout) == (0, b"alive\n")


def test_started_with_sigchld_ignored(idle: Server) -> None:
    script = f"trap '' CHLD; exec {' '.join(GSRUN)} sh -c 'sleep 0.05; exit 3'"
    assert subprocess.run(["bash", "-c", script], env=idle.env, timeout=20).returncode == 3


def test_clean_signal_state(gsrun: Start) -> None:
    """The command starts as from a shell: nothing blocked, nothing ignored (SIGPIPE neither)."""
    run = gsrun("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    plain = subprocess.run(["sh", "-c", "grep -E '^Sig(Blk|Ign)' /proc/self/status"], capture_output=True, text=True)
    assert run.wait() == 0
    assert run.out == plain.stdout


def test_script_without_interpreter_line(gsrun: Start, tmp_path: Path) -> None:
    script = tmp_path / "plain"
    script.write_text("echo from a plain script $1\n")
    script.chmod(0o755)
    run = gsrun(str(script), "one")
    assert run.wait() == 0
    assert run.out == "from a plain script one\n"


def test_script_with_missing_interpreter(gsrun: Start, tmp_path: Path) -> None:
    script = tmp_path / "lost"
    script.write_text("#!/nonexistent/interpreter\n")
    script.chmod(0o755)
    run = gsrun(str(script))
    assert run.wait() == 127
    assert "its interpreter was not found" in run.err


def test_time_limit(gsrun: Start, stub: Stub) -> None:
    run = gsrun(
        "--time", "0.5s", "--name", "limited", "sh", "-c", "trap 'echo told; exit 0' TERM; echo up; sleep 60 & wait"
    )
    assert run.wait() == 124
    assert "told" in run.out
    assert "the time limit of 1s is reached" in run.err or "the time limit of 0s is reached" in run.err
    assert ended_job(stub, "limited").state == job_pb2.JOB_STATE_TIMED_OUT


def test_time_limit_of_a_stubborn_command(gsrun: Start) -> None:
    run = gsrun(
        "--time", "0.3s", "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done", env={"GPUSCHED_KILL_AFTER": "0.3"}
    )
    assert run.wait() == 124
    assert run.survivors() == []


def test_cancel_ends_the_command(gsrun: Start, stub: Stub) -> None:
    run = gsrun("--name", "to cancel", "sh", "-c", "echo up; exec sleep 100")
    run.wait_for_out("up")
    job = running_jobs(stub)[0]
    stub.CancelJob(scheduler_pb2.CancelJobRequest(job_id=job.id, reason="make room"))
    assert run.wait() == 143
    assert "make room" in run.err
    assert ended_job(stub, "to cancel").state == job_pb2.JOB_STATE_CANCELLED


def test_proxy_variables_do_not_matter(gsrun: Start) -> None:
    proxy = "http://127.0.0.1:1"
    run = gsrun("true", env=dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"), proxy))
    assert run.wait() == 0


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]
