"""Many small runs at once, each with a GPU of its own, as many at a time as the scheduler gives.

Run it with a scheduler that is up, or let it start one: GPUSCHED_SIMULATE=8 python examples/async_sweep.py
"""

import asyncio
import os
import sys

from gpusched.client.aio import acquire

RUN = "import os, sys; print(f'lr={sys.argv[1]} on GPU', os.environ['CUDA_VISIBLE_DEVICES'])"


async def one_run(rate: float) -> None:
    # environ=False: `os.environ` is one for all tasks, so each subprocess is given its variables itself.
    async with acquire(name=f"lr={rate}", environ=False, on_update=lambda update: None) as lease:
        run = await asyncio.create_subprocess_exec(sys.executable, "-c", RUN, str(rate), env=os.environ | lease.env)
        await run.wait()


async def main() -> None:
    async with asyncio.TaskGroup() as runs:
        for exponent in range(4):
            runs.create_task(one_run(10.0**-exponent))


asyncio.run(main())
