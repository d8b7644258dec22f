"""Lines of the log that tell of jobs."""

from __future__ import annotations

import pytest

from core.support import Box
from core.test_batch import batch_spec, run
from gpusched.scheduler import journal as journal_module
from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.jobs import JobId
from gpusched.scheduler.journal import Journal


def test_a_later_run_has_not_waited_while_the_first_one_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, object]] = []
    monkeypatch.setattr(journal_module, "log_event", lambda log, event, **fields: lines.append(fields))
    box = Box("1")
    journal = Journal(box.engine)

    def start_after(seconds: float) -> JobId:
        box.wait(seconds)
        box.happen(ev.Pause(None))
        (start,) = box.claim(do.StartRun)
        journal.on_effect(start)
        run(box, start.job)
        return start.job

    box.happen(ev.Pause(""))
    box.happen(ev.Submit(batch_spec()))
    job = start_after(3)
    box.wait(20)
    box.happen(ev.Pause(""))
    box.happen(ev.Requeue(job, "by hand"))
    box.release(job)
    assert start_after(2) == job
    assert [(line["attempt"], line["waited"]) for line in lines] == [(None, 3.0), (2, 2.0)]
