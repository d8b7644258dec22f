"""Training scripts whose data loaders fork, as PyTorch's do."""

import os
import signal
import time

import pytest

from gpusched.client import Client, JobState, acquire
from support.scripts import Script

pytest.importorskip("torch", reason="PyTorch is not installed (pip install torch; a CPU build will do)")

TRAINING = """
    import os, sys
    import torch
    from torch.utils.data import DataLoader, Dataset
    from gpusched.client import acquire

    class Numbers(Dataset):
        def __len__(self):
            return 64
        def __getitem__(self, index):
            return torch.tensor([index, os.getpid(), int(os.environ["CUDA_VISIBLE_DEVICES"])])

    if __name__ == "__main__":
        with acquire(name="training") as lease:
            loader = DataLoader(
                Numbers(), batch_size=8, num_workers=2, persistent_workers=True, multiprocessing_context="fork"
            )
            for epoch in range(2):
                batches = torch.cat(list(loader))
                lease.check()
            workers = set(batches[:, 1].tolist())
            print(lease.job_id, len(batches), batches[:, 2].unique().tolist(), *workers)
            if sys.stdin.readline().strip() == "stay":
                for batch in loader:
                    sys.stdin.readline()
        print("done")
"""


@pytest.fixture
def one_gpu(here_with_one):
    return here_with_one


@pytest.mark.slow
def test_data_loader_workers(one_gpu):
    with Script(TRAINING, one_gpu.env) as script, Client() as client:
        job_id, count, visible, *workers = script.line(60).split()
        assert (count, visible, len(workers)) == ("64", "[0]", 2)
        script.say("leave")
        assert script.line() == "done"
        assert script.wait() == 0
        assert client.job(job_id).state is JobState.COMPLETED
        assert "fork" not in script.errors


@pytest.mark.slow
def test_kill_9_among_data_loader_workers(one_gpu):
    with Script(TRAINING, one_gpu.env) as script, Client() as client:
        job_id, _, _, *workers = script.line(60).split()
        script.say("stay")
        ticket = acquire()
        assert next(iter(ticket)).position == 1
        # Stopped, the workers cannot notice that their parent is gone, and keep all that they inherited open.
        for worker in workers:
            os.kill(int(worker), signal.SIGSTOP)
        script.signal(signal.SIGKILL)
        began = time.monotonic()
        with ticket:
            assert time.monotonic() - began < 4.0
            assert client.job(job_id).state is JobState.LOST
            for worker in workers:
                os.kill(int(worker), 0)
                os.kill(int(worker), signal.SIGCONT)
