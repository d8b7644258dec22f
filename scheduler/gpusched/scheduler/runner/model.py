"""One run of a batch job's command, as the server asks for it and as it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path

LOGS = "logs"
"""Directory in the state directory with a log for each run: its output, or an empty one if that goes elsewhere."""


def kept_log(directory: Path, job_id: str, attempt: int) -> Path:
    """The log of one run."""
    return directory / f"{job_id}.{attempt}.log"


@dataclass(frozen=True, slots=True)
class Run:
    """What a supervisor needs to know.

    Attributes:
        job_id: the job.
        epoch: fencing token of the grant that it runs under.
        attempt: which run of the job this is, from 1.
        resume_token: the lease's secret.
        address: of the scheduler, `host:port`.
        state_id: the server state that made the grant; no other one's word ends the run.
        command: words, run by no shell; the first is looked for in the environment's `PATH`.
        environment: all of it; nothing is added.
        working_directory: absolute path.
        output_path: absolute path of the file that gets stdout and stderr.
        time_limit: seconds, None for none.
        grace: seconds from SIGTERM to SIGKILL.
        signal: name of what the command gets, and so many seconds before its time limit or another job's turn; None:
            SIGTERM at once.
        state_directory: absolute path of where the server keeps its state; empty where that is nobody's concern.
    """

    job_id: str
    epoch: int
    attempt: int
    resume_token: str = field(repr=False)
    address: str
    state_id: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)
    working_directory: str
    output_path: str
    time_limit: float | None
    grace: float
    state_directory: str = ""
    signal: tuple[str, float] | None = None

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from every other run: the job and the epoch."""
        return self.job_id, self.epoch

    @property
    def gpus(self) -> int:
        """GPUs of its lease."""
        return len([gpu for gpu in self.environment.get("GPUSCHED_GPUS", "").split(",") if gpu])

    def to_json(self) -> str:
        """ASCII text; bytes that are no text (surrogates) come through unharmed."""
        return json.dumps({each.name: getattr(self, each.name) for each in fields(self)})

    @classmethod
    def from_json(cls, text: str | bytes) -> Run:
        """The run that `to_json` wrote.

        Raises:
            ValueError: the text is none, or something is missing.
        """
        try:
            values = json.loads(text)
            more = {"command": tuple(values["command"])}
            if values.get("signal") is not None:
                name, before = values["signal"]
                more["signal"] = (name, before)
            return cls(**values | more)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a run: {error}") from None


@dataclass(frozen=True, slots=True)
class Report:
    """How a run ended and what it used.

    Attributes:
        exit_status: of the command, or what stands for its failure to start; None if a signal ended it.
        signal: that ended the command, 0 for none.
        message: for the job's history; empty if the numbers say all.
        timed_out: ended because its time limit was reached.
        wall: seconds from the command's start until nothing was left of it.
        cpu: seconds, of all its processes.
        peak_memory_bytes: of all its processes together, as far as it was seen; 0 if it was too short to be.
        gpu_seconds: GPUs held times seconds.
    """

    exit_status: int | None = None
    signal: int = 0
    message: str = ""
    timed_out: bool = False
    wall: float = 0.0
    cpu: float = 0.0
    peak_memory_bytes: int = 0
    gpu_seconds: float = 0.0

    def to_json(self) -> str:
        """ASCII text; bytes that are no text (surrogates) come through unharmed."""
        return json.dumps({each.name: getattr(self, each.name) for each in fields(self)})

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The report that `to_json` wrote. Raises ValueError if the text is none."""
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"not a report: {error}") from None
