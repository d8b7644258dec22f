"""The commands of batch jobs against a service that answers as told: what is sent, what is shown, what is endured."""

from __future__ import annotations

import io
import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

import gpusched.v1.job_pb2 as job_pb
import gpusched.v1.resources_pb2 as resources_pb
import gpusched.v1.scheduler_pb2 as pb
from cli.fake_service import END, FakeScheduler, FakeServer, Refusal
from cli.terminal import Terminal
from gpusched.client.cli import logs, wait
from gpusched.client.cli.main import run
from gpusched.client.submission import Submission, begin_time, environment_of
from gpusched.client.usage import UsageError
from support.server import clean_environment

Captured = pytest.CaptureFixture[str]
AWAY = Refusal(grpc.StatusCode.UNAVAILABLE, "the server stops", "SERVER_STOPPING")


class BatchScheduler(FakeScheduler):
    """With the calls of batch jobs; each answer of a stream is a queue of its own."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("Submit", "RequeueJob"):
            setattr(self, name, self._unary(name))
        for name in ("WaitJob", "StreamLogs"):
            setattr(self, name, self._streams(name))
        self.answers["GetJob"] = pb.GetJobResponse(job=job(7))
        self.answers["Submit"] = pb.SubmitResponse(job=job(7))

    def _streams(self, name: str) -> Any:
        """`answers[name]` is a list of streams, each a list of messages, refusals and `END`."""

        def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            self.requests.append((name, request))
            waiting: queue.Queue[Any] = queue.Queue()
            for item in self.answers[name].pop(0):
                waiting.put(item)
            while context.is_active():
                item = waiting.get(timeout=5)
                if item is END:
                    return
                if isinstance(item, Refusal):
                    item.raise_in(context)
                yield item

        return answer


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr("cli.fake_service.FakeScheduler", BatchScheduler)
    for module in (logs, wait):
        monkeypatch.setattr(module, "RETRY_EVERY", 0.01)
        monkeypatch.setattr(module, "RETRY_FOR", 0.5)
    with FakeServer() as server:
        yield server


@pytest.fixture
def cli(fake: FakeServer) -> Callable[..., int]:
    return lambda *argv: run(["--url", fake.address, *argv])


def job(number: int, state: str = "QUEUED", **fields: Any) -> job_pb.Job:
    value: Any = job_pb.JobState.Value(f"JOB_STATE_{state}")
    return job_pb.Job(id=str(number), state=value, **fields)


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("resources.gpus", "--gpus: "),
        ("resources.gpu_memory_bytes", "--gpu-memory: "),
        ("resources.labels", "--constraint: "),
        ("resources.nodes", "--node: "),
        ("resources.memory_bytes", "--mem: "),
        ("preempt_signal.name", "--signal: "),
        ("retry.exit_statuses", "--retry-on: "),
        ("dependencies", "--after: "),
        ("begin_at", "--begin: "),
        ("time_limit", "--time: "),
        ("command", "command: "),
        ("of.a.newer.server", "of.a.newer.server: "),
    ],
)
def test_what_the_server_refuses_names_the_option(
    fake: FakeServer, cli: Callable[..., int], capsys: Captured, field: str, option: str
) -> None:
    code = grpc.StatusCode.INVALID_ARGUMENT
    fake.service.answers["Submit"] = Refusal(code, f"{field}: will not do", "INVALID_REQUEST", field)
    assert cli("submit", "true") == 1
    assert capsys.readouterr().err == f"gpusched: {option}will not do\n"


def piece(data: bytes, offset: int = 0, attempt: int = 1) -> pb.StreamLogsResponse:
    return pb.StreamLogsResponse(data=data, offset=offset, attempt=attempt)


# -- submit ---------------------------------------------------------------------------------------------------


def test_what_is_sent(fake: FakeServer, cli: Callable[..., int], capsys: Captured, tmp_path: Path) -> None:
    words = "-n 2 --gpu-memory 40G --gpu-model H100 --priority -3 --name train --time 1h30m --clean-env --env A=b=c"
    words += " --gpu-id 1,n:2 --exclude 3 --constraint disk=nvme --node n --gpus-per-node 2 --spread"
    more = "--retries 3 --backoff 500ms --retry-on 1 --retry-on 75 --requeue --after 3 --after 4:failed --hold"
    begin = datetime(2031, 5, 6, 7, 8, tzinfo=UTC)
    paths = ["--workdir", str(tmp_path), "-o", "out/%j", "--grace", "0", "--begin", begin.isoformat()]
    assert cli("submit", *words.split(), *more.split(), *paths, "--", "python", "-u", "x.py", "--json") == 0
    (request,) = fake.service.of("Submit")
    assert len(request.request_id) == 32
    begin_at = request.begin_at.ToDatetime(tzinfo=UTC)
    request.ClearField("request_id")
    request.ClearField("begin_at")
    conditions = job_pb.DEPENDENCY_CONDITION_OK, job_pb.DEPENDENCY_CONDITION_FAILED
    expected = pb.SubmitRequest(
        command=["python", "-u", "x.py", "--json"],
        name="train",
        priority=-3,
        time_limit=Duration(seconds=5400),
        environment={"A": "b=c"},
        working_directory=str(tmp_path),
        output_path=str(Path("out/%j").absolute()),
        retry=job_pb.RetryPolicy(max_retries=3, backoff=Duration(nanos=500_000_000), exit_statuses=[1, 75]),
        requeue=True,
        dependencies=[
            job_pb.Dependency(job_id=number, condition=condition)
            for number, condition in zip(("3", "4"), conditions, strict=True)
        ],
        held=True,
        grace=Duration(),
    )
    expected.resources.gpus = 2
    expected.resources.gpu_memory_bytes = 40 << 30
    expected.resources.gpu_model = "H100"
    expected.resources.gpu_ids[:] = ["1", "n:2"]
    expected.resources.exclude[:] = ["3"]
    expected.resources.labels["disk"] = "nvme"
    expected.resources.nodes[:] = ["n"]
    expected.resources.gpus_per_node = 2
    expected.resources.placement = resources_pb.PLACEMENT_SPREAD
    assert request == expected
    assert begin_at == begin
    assert capsys.readouterr() == ("7\n", "")


def test_what_is_sent_of_a_bare_submit(
    fake: FakeServer, cli: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"MINE": "x", "CUDA_VISIBLE_DEVICES": "3", "GPUSCHED_JOB_ID": "9"}.items():
        monkeypatch.setenv(name, value)
    assert cli("submit", "nvidia-smi") == 0
    assert cli("submit", "nvidia-smi") == 0
    first, second = fake.service.of("Submit")
    assert first.request_id != second.request_id
    assert (first.resources.gpus, first.working_directory, first.output_path) == (1, str(tmp_path), "")
    assert not any(map(first.HasField, ("time_limit", "begin_at", "grace")))
    assert not first.retry.HasField("backoff") and first.retry.max_retries == 0
    assert first.environment["MINE"] == "x" and "PATH" in first.environment
    assert not {"CUDA_VISIBLE_DEVICES", "GPUSCHED_JOB_ID"} & set(first.environment)


def test_a_terminal_is_told_what_to_do_next(fake: FakeServer) -> None:
    environment = clean_environment(GPUSCHED_URL=fake.address)
    with Terminal(["submit", "true"], environment) as terminal:
        assert terminal.wait_for(lambda lines: "logs" in lines[-1]) == [
            "7",
            "queued as job 7; follow it with: gpusched logs -f 7",
        ]


@pytest.mark.parametrize(
    ("text", "then"),
    [
        ("now", timedelta()),
        ("now+90m", timedelta(minutes=90)),
        ("now+1h30m", timedelta(minutes=90)),
        ("14:30", timedelta(hours=2, minutes=30)),
        ("12:00:01", timedelta(seconds=1)),
        ("12:00", timedelta(days=1)),  # this very moment: the next one
        ("9:00", timedelta(hours=21)),
        ("2026-11-23", timedelta(hours=12)),
        ("2026-11-22T13:00", timedelta(hours=1)),
        ("2026-11-22 12:00:30", timedelta(seconds=30)),
    ],
)
def test_begin_times(text: str, then: timedelta) -> None:
    noon = datetime(2026, 11, 22, 12)
    assert datetime.fromtimestamp(begin_time(text, noon.timestamp())) == noon + then


def test_begin_times_with_a_zone_and_as_values() -> None:
    assert begin_time("2026-11-22T12:00+02:00", 0.0) == datetime(2026, 11, 22, 10, tzinfo=UTC).timestamp()
    assert begin_time(datetime(2026, 11, 22, 10, tzinfo=UTC), 0.0) == datetime(2026, 11, 22, 10, tzinfo=UTC).timestamp()
    for wrong in ("", "now-1h", "now+", "24:00", "12:60", "noon", "2026-13-01", "12", "1:2"):
        with pytest.raises(UsageError, match="begin: "):
            begin_time(wrong, 0.0)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("command", {"command": "python train.py"}),
        ("command", {"command": []}),
        ("command", {"command": ["\udcff"]}),
        ("name", {"name": "\udcff"}),
        ("workdir", {"workdir": "/\udcff"}),
        ("output", {"output": "/\udcff"}),
        ("environment", {"environment": {"A": "\udcff"}}),
        ("environment", {"environment": {"A": 1}}),
        ("gpus", {"gpus": True}),
        ("gpus", {"gpus": 2**31}),
        ("retries", {"retries": 1.5}),
        ("retry_on", {"retry_on": ["1"]}),
        ("after", {"after": ["17:never"]}),
        ("after", {"after": [-1]}),
        ("grace", {"grace": timedelta(seconds=-1)}),
        ("backoff", {"backoff": "often"}),
    ],
)
def test_what_a_submission_may_not_be(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        Submission(**{"command": ["true"], **values}).request()
    assert caught.value.field == field


def test_the_environment_is_not_in_a_submissions_repr() -> None:
    assert "secret" not in repr(Submission(command=["true"], environment={"KEY": "secret"}))
    assert environment_of({"CUDA_VISIBLE_DEVICES": "1"}) == {"CUDA_VISIBLE_DEVICES": "1"}, "what is given counts"


# -- wait -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        (job(1, "COMPLETED", outcome=job_pb.Outcome(exit_status=0)), 0),
        (job(1, "COMPLETED"), 0),
        (job(1, "FAILED", outcome=job_pb.Outcome(exit_status=3)), 3),
        (job(1, "FAILED", outcome=job_pb.Outcome(signal=9)), 137),
        (job(1, "FAILED", outcome=job_pb.Outcome(message="moved by hand")), 125),
        (job(1, "CANCELLED", outcome=job_pb.Outcome(exit_status=0)), 143),
        (job(1, "TIMED_OUT", outcome=job_pb.Outcome(signal=15)), 124),
        (job(1, "LOST"), 125),
        (job(1, "PREEMPTED"), 125),
    ],
    ids=lambda value: "" if isinstance(value, int) else job_pb.JobState.Name(value.state),
)
def test_status_of_wait(
    ended: job_pb.Job, status: int, fake: FakeServer, cli: Callable[..., int], capsys: Captured
) -> None:
    fake.service.answers["WaitJob"] = [[pb.WaitJobResponse(job=each) for each in (job(1), job(1, "RUNNING"), ended)]]
    fake.service.answers["WaitJob"][0].append(END)
    assert cli("wait", "1") == status
    captured = capsys.readouterr()
    assert captured.out.startswith("job 1 ") and captured.out.count("\n") == 1 and captured.err == ""


def test_wait_comes_back_to_a_scheduler_that_was_away(
    fake: FakeServer, cli: Callable[..., int], capsys: Captured
) -> None:
    done = job(7, "FAILED", outcome=job_pb.Outcome(exit_status=4, message="exit 4"))
    fake.service.answers["WaitJob"] = [
        [AWAY],  # before its first word
        [pb.WaitJobResponse(job=job(7, "RUNNING")), AWAY],
        [AWAY],
        [pb.WaitJobResponse(job=job(7, "RUNNING")), END],  # a stream that just ends means nothing
        [pb.WaitJobResponse(job=done), END],
    ]
    assert cli("wait", "7") == 4
    assert capsys.readouterr() == ("job 7 failed: exit 4\n", "")


def test_wait_gives_up_in_the_end(fake: FakeServer, cli: Callable[..., int], capsys: Captured) -> None:
    fake.service.answers["WaitJob"] = [[pb.WaitJobResponse(job=job(7, "RUNNING")), AWAY], *([AWAY] for _ in range(999))]
    assert cli("wait", "7") == 69
    assert capsys.readouterr() == ("", "gpusched: the server stops\n")
    fake.service.answers["WaitJob"] = [[Refusal(grpc.StatusCode.NOT_FOUND, "no job 7", "JOB_NOT_FOUND")]]
    assert cli("wait", "7") == 1
    fake.service.answers["GetJob"] = AWAY
    assert cli("wait", "7") == 69, "one that was never there is not waited for"
    assert len(fake.service.answers["WaitJob"]) == 0


def test_wait_for_several_as_json(fake: FakeServer, cli: Callable[..., int], capsys: Captured) -> None:
    one, two = job(1, "COMPLETED"), job(2, "TIMED_OUT")
    fake.service.answers["WaitJob"] = [[pb.WaitJobResponse(job=each), END] for each in (one, two)]
    assert cli("wait", "1", "2", "1", "--json") == 124
    assert [each["id"] for each in json.loads(capsys.readouterr().out)["jobs"]] == ["1", "2"]
    assert [request.job_id for request in fake.service.of("WaitJob")] == ["1", "2"]


# -- logs -----------------------------------------------------------------------------------------------------


def test_logs_go_on_where_they_were(fake: FakeServer, cli: Callable[..., int], capfdbinary: Any) -> None:
    fake.service.answers["StreamLogs"] = [
        [AWAY],
        [piece(b"\xff\x00one", 100, 2), piece(b"two", 105, 2), AWAY],
        [AWAY],
        [piece(b"three", 108, 2), AWAY],
        [piece(b"next", 0, 3), AWAY],
        [END],
    ]
    assert cli("logs", "-f", "-n", "2", "7") == 0
    captured = capfdbinary.readouterr()
    assert captured.out == b"\xff\x00onetwothreenext"
    assert captured.err == b"job 7, attempt 3:\n"
    sent = [(each.attempt, each.offset, each.tail_lines, each.follow) for each in fake.service.of("StreamLogs")]
    first = (0, 0, 2, True)
    assert sent == [first, first, (2, 108, 0, True), (2, 108, 0, True), (2, 113, 0, True), (3, 4, 0, True)]


def test_logs_without_follow(fake: FakeServer, cli: Callable[..., int], capfdbinary: Any) -> None:
    fake.service.answers["StreamLogs"] = [[AWAY]]
    assert cli("logs", "7") == 69
    assert capfdbinary.readouterr() == (b"", b"gpusched: the server stops\n")
    fake.service.answers["StreamLogs"] = [[piece(b"one"), AWAY], [piece(b"two", 3), END]]
    assert cli("logs", "--attempt", "1", "7") == 0
    assert capfdbinary.readouterr() == (b"onetwo", b"")
    assert fake.service.of("GetJob") == []


def test_logs_give_up_in_the_end(fake: FakeServer, cli: Callable[..., int], capfdbinary: Any) -> None:
    fake.service.answers["StreamLogs"] = [[piece(b"one"), AWAY], *([AWAY] for _ in range(999))]
    assert cli("logs", "-f", "7") == 69
    assert capfdbinary.readouterr() == (b"one", b"gpusched: the server stops\n")
    gone = Refusal(grpc.StatusCode.NOT_FOUND, "its output is not there", "JOB_NOT_FOUND")
    fake.service.answers["StreamLogs"] = [[piece(b"one"), gone]]
    assert cli("logs", "-f", "7") == 1
    assert capfdbinary.readouterr() == (b"one", b"gpusched: its output is not there\n")
    fake.service.answers["GetJob"] = AWAY
    assert cli("logs", "-f", "7") == 69, "one that was never there is not waited for"


def process(fake: FakeServer, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "gpusched.client.cli", *argv],
        env=clean_environment(GPUSCHED_URL=fake.address),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def test_logs_into_what_nobody_reads_and_what_is_full(fake: FakeServer) -> None:
    much = [piece(b"x" * 65536, number * 65536) for number in range(100)]
    fake.service.answers["StreamLogs"] = [[*much, END], [*much, END]]
    with process(fake, "logs", "7") as reading:
        assert reading.stdout is not None and reading.stderr is not None
        reading.stdout.read(10)
        reading.stdout.close()
        assert (reading.wait(20), reading.stderr.read()) == (141, b"")
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb") as full, process(fake, "logs", "7", stdout=full) as writing:
            assert writing.communicate(timeout=20)[1] == b"gpusched: cannot write the output: No space left on device\n"
            assert writing.returncode == 1


# -- requeue, hold --------------------------------------------------------------------------------------------


def test_requeue_says_under_which_id(fake: FakeServer, cli: Callable[..., int], capsys: Captured) -> None:
    fake.service.answers["RequeueJob"] = [pb.RequeueJobResponse(job=job(number)) for number in (7, 8, 8, 8)]
    assert cli("requeue", "7") == cli("requeue", "7") == cli("requeue", "-q", "7") == cli("requeue", "--json", "7") == 0
    lines = capsys.readouterr().out.split("\n", 2)
    assert lines[:2] == [
        "job 7 is told to end, and is queued again",
        "job 7 had ended; the same work is queued as job 8",
    ]
    assert json.loads(lines[2])["id"] == "8"


@pytest.mark.parametrize(("command", "held"), [("hold", True), ("unhold", False)])
def test_hold(command: str, held: bool, fake: FakeServer, cli: Callable[..., int], capsys: Captured) -> None:
    ended = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "job 2 has ended", "JOB_ENDED")
    answers = [pb.UpdateJobResponse(job=job(1)), ended, pb.UpdateJobResponse(job=job(3))]
    fake.service.answers["UpdateJob"] = list(answers)
    assert cli(command, "1", "2", "3", "1") == 1
    words = "held" if held else "no longer held"
    assert capsys.readouterr() == (f"job 1 is {words}\njob 3 is {words}\n", "gpusched: job 2 has ended\n")
    sent = [(each.job.id, each.job.held, list(each.update_mask.paths)) for each in fake.service.of("UpdateJob")]
    assert sent == [(number, held, ["held"]) for number in "123"]
    fake.service.answers["UpdateJob"] = list(answers)
    assert cli(command, "--json", "1", "2", "3") == 1
    document = json.loads(capsys.readouterr().out)
    assert [each["id"] for each in document["jobs"]] == ["1", "3"]
    assert document["errors"] == [{"job_id": "2", "reason": "JOB_ENDED", "message": "job 2 has ended"}]


def test_what_is_missing_on_the_command_line(
    fake: FakeServer, cli: Callable[..., int], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for argv in (["wait"], ["logs"], ["requeue"], ["hold"], ["unhold"], ["set-state", "1", "lost"], ["submit", "-n1"]):
        assert cli(*argv) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("gpusched: ") and captured.err.count("\n") == 1
    for argv in (
        ["logs", "-n", "0", "1"],
        ["logs", "--attempt", "x", "1"],
        ["wait", "\x1b"],
        ["cancel", "--name", " "],
    ):
        assert cli(*argv) == 2
    assert fake.service.requests == []
