"""Running `gpusched` as a user would: a process of its own, against a real server."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from support.server import Server

CLI = [sys.executable, "-m", "gpusched.client.cli"]


def gpusched(server: Server, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *argv], env=server.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, **options
    )


def good(server: Server, *argv: str) -> str:
    """Standard output of a command that must work and have nothing to complain of."""
    done = gpusched(server, *argv)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout
