"""What the link tells the holder. For type checkers alone: never imported when gsrun runs."""

from __future__ import annotations

from typing import Protocol

from gpusched.v1 import scheduler_pb2


class Listener(Protocol):
    """What the holder does about what the scheduler says; called in the holder's loop."""

    def on_say(self, text: str) -> None: ...
    def on_accepted(self, accepted: scheduler_pb2.Accepted) -> None: ...
    def on_queued(self, queued: scheduler_pb2.Queued) -> None: ...
    def on_granted(self, granted: scheduler_pb2.Granted) -> None: ...
    def on_confirmed(self, epoch: int) -> None: ...
    def on_notice(self, notice: scheduler_pb2.Notice) -> None: ...
    def on_dry_run(self, dry_run: scheduler_pb2.DryRun) -> None: ...
    def on_away(self) -> None:
        """The connection was lost, and nobody said that place or lease is gone."""

    def on_connected(self) -> None:
        """There is a new connection, by which the lease is about to be taken up again."""

    def on_not_now(self, why: str) -> None:
        """The scheduler answers, and can take no job at the moment."""

    def on_stranger(self) -> None:
        """Another scheduler answers in the place of the one that is away."""

    def on_place_lost(self, why: str) -> None:
        """The place in the queue is gone; we queue again."""

    def on_refused(self, message: str, code: int) -> None:
        """The scheduler's last word, or ours: there will be no GPUs. `code` is what gsrun exits with."""

    def on_ended(self, message: str, code: int) -> None:
        """The scheduler that granted the lease took it back."""
