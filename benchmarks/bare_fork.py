"""The floor of a batch job: a warm parent forks for each, and the child runs the command and waits for it.

No lease, no log, no history. Driven by lines on stdin:

    python -m benchmarks.bare_fork

Each line is JSON: `[how often, how many at a time, words…]`. Answered by a line when all have ended; commands inherit
stdout.
"""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

from gpusched.client.gsrun import linux
from gpusched.scheduler.runner import agent, spawn


def main() -> None:
    agent._warm_up()  # the same parent, with the same modules in its memory
    print("ready", flush=True)
    for line in sys.stdin:
        count, most, *words = json.loads(line)
        running = 0
        for _ in range(count):
            if running == most:
                os.wait()
                running -= 1
            if os.fork() == 0:
                _become(words)
            running += 1
        for _ in range(running):
            os.wait()
        print("done", flush=True)


def _become(words: list[str]) -> NoReturn:
    """What any supervisor must do: it outlives the command, and all that the command starts is below it."""
    try:
        os.setsid()
        linux.become_subreaper()
        os.waitpid(spawn.start(tuple(words), os.environ, 1), 0)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
