"""Do something else while waiting, and look at who is ahead.

Run it with a scheduler that is up, or let it start one: GPUSCHED_SIMULATE=8 python examples/wait_and_watch.py
"""

from gpusched.client import Client, acquire

ticket = acquire(gpus=1, name="patient")
for update in ticket:  # each change of place; ends at the grant
    print(f"number {update.position} of {update.total}: {update.reason.message}")
    for blocker in update.reason.blockers:
        print(f"  GPU {blocker.gpu_index} is held by {blocker.user} ({blocker.job_name})")

with ticket as lease, Client() as client:
    status = client.status()
    print(f"granted GPU {lease.gpus[0].index}; {status.gpus_free} of {status.gpus_total} are still free")
    for job in client.jobs():
        print(f"  job {job.id} {job.state} {job.user} {job.name}")
