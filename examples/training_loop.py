"""A training loop that saves its work when it is told to end, and goes on from there the next time.

Run it with a scheduler that is up, or let it start one: GPUSCHED_SIMULATE=8 python examples/training_loop.py
While it runs: `gpusched cancel JOB`, and look what it does.
"""

import json
import sys
import time
from pathlib import Path

from gpusched.client import LeaseLost, NoticeKind, acquire

CHECKPOINT = Path(sys.argv[1] if len(sys.argv) > 1 else "checkpoint.json")
STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 200

# Kinds of notice after which the GPUs will be gone: save what there is.
ENDING = {NoticeKind.CANCEL, NoticeKind.PREEMPTION, NoticeKind.TIME_LIMIT, NoticeKind.DRAIN}


def train_step(weight: float) -> float:
    """Stands for your own: one step of gradient descent towards 3."""
    time.sleep(0.01)
    return weight - 0.1 * 2 * (weight - 3)


state = json.loads(CHECKPOINT.read_text()) if CHECKPOINT.exists() else {"step": 0, "weight": 0.0}
try:
    with acquire(gpu_memory="10G", time_limit="1h", name="training") as lease:
        print(f"job {lease.job_id}: from step {state['step']} on GPU {lease.gpus[0].index}", flush=True)
        while state["step"] < STEPS:
            lease.check()  # raises LeaseLost once the GPUs are no longer ours, or the time limit is over
            state = {"step": state["step"] + 1, "weight": train_step(state["weight"])}
            if any(notice.kind in ENDING for notice in lease.notices):
                print(f"told to end: {lease.notices[-1].message}")
                break
except LeaseLost as error:
    print(f"the GPUs are gone: {error}")
finally:
    CHECKPOINT.write_text(json.dumps(state))

print(f"saved at step {state['step']} of {STEPS}, weight {state['weight']:.3f}")
