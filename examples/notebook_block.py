"""GPUs for one cell of a notebook, or one part of a script.

Run it with a scheduler that is up, or let it start one: GPUSCHED_SIMULATE=8 python examples/notebook_block.py
"""

import os

from gpusched.client import acquire

with acquire(gpus=2, time_limit="2h") as lease:  # waits its turn, and shows its place while it does
    print("GPUs", [gpu.index for gpu in lease.gpus], "of", lease.gpus[0].node)
    print("CUDA_VISIBLE_DEVICES =", os.environ["CUDA_VISIBLE_DEVICES"])
    # import torch here, or at least use CUDA for the first time here: it reads that variable once.

print("given back; CUDA_VISIBLE_DEVICES =", os.environ.get("CUDA_VISIBLE_DEVICES"))
