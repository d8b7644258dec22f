"""`gpusched serve` and `gpusched stop`: the scheduler's own program takes over, arguments unread."""

from __future__ import annotations

import argparse
import os
import sys

from gpusched.client.cli.output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    """Nothing: the scheduler reads its arguments itself."""


def run(args: argparse.Namespace, output: Output) -> int:
    """Become the scheduler's program; comes back only if that cannot be started."""
    words = list(args.rest)
    if args.url:
        if args.command != "stop":
            args.fail(f"{args.command} takes no --url; it serves on --port of this machine")
        words = ["--url", args.url, *words]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(sys.executable, [sys.executable, "-m", "gpusched.scheduler", args.command, *words])
    except OSError as error:
        output.error(f"cannot start {sys.executable}: {error.strerror}")
    return 1
