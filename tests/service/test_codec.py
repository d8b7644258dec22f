"""Jobs as they are kept: all of a request comes back, and so does what an older version kept."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gpusched.scheduler.codec import Specs, job_of, record_of
from gpusched.scheduler.core.jobs import Job, JobId, JobSpec
from gpusched.scheduler.core.model import Owner, Placement, Request
from gpusched.scheduler.core.states import Finished, Outcome, Queued, State

NAMES = st.lists(st.text(max_size=5), max_size=3).map(tuple)


def kept(request: Request) -> Job:
    spec = JobSpec(Owner(1000, "alice"), request)
    return Job(id=JobId(7), spec=spec, submitted_at=1.0, priority=0, name="", status=Queued(1.0, None))


@given(
    st.builds(
        Request,
        st.integers(1, 9),
        st.integers(0, 2**40),
        st.text(max_size=3),
        st.text(max_size=3),
        nodes=NAMES,
        gpu_ids=NAMES,
        exclude=NAMES,
        labels=st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=2).map(tuple),
        per_node=st.integers(0, 9),
        placement=st.sampled_from(list(Placement)),
    )
)
def test_a_request_comes_back_as_it_was(request_: Request) -> None:
    again = job_of(record_of(kept(request_))).spec.request
    assert again == request_ and hash(again) == hash(request_)


def test_a_request_of_an_older_version() -> None:
    record = record_of(kept(Request(2, 5, "h100", "a")))
    data = json.loads(record.data)
    assert "where" not in data["spec"], "what most do not say is not kept either"
    assert job_of(record).spec.request == Request(2, 5, "h100", "a")


def test_what_a_job_says_of_itself_comes_back_and_may_be_missing() -> None:
    job = kept(Request(1))
    assert not {"estimate", "preemptible", "signal"} & json.loads(record_of(job).data)["spec"].keys()
    plain = job_of(record_of(job)).spec
    assert (plain.estimate, plain.preemptible, plain.signal) == (None, False, None)
    job.spec = replace(job.spec, estimate=5.5, preemptible=True, signal=("USR1", 60.0))
    assert job_of(record_of(job)).spec == job.spec


def test_what_is_remembered_of_a_spec_is_dropped_when_it_changes_and_when_its_job_ends() -> None:
    specs: Specs = {}
    job = kept(Request(1))
    assert record_of(job, specs) == record_of(job)
    kept_spec, text = specs[job.id]
    assert kept_spec is job.spec and json.loads(text) == json.loads(record_of(job).data)["spec"]
    job.priority = 7
    assert record_of(job, specs) == record_of(job), "what may change is not what is remembered"
    assert specs[job.id][1] is text, "it is encoded once"
    job.spec = replace(job.spec, estimate=5.5)
    assert record_of(job, specs) == record_of(job)
    job.status = Finished(9.0, State.CANCELLED, Outcome(message="left the queue"))
    assert record_of(job, specs) == record_of(job) and not specs
