"""Secrets of batch runs: made from the run itself and a key of the state, so that none has to be kept."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

_PREFIX = "run"


class RunTokens:
    """Makes and checks the secret under which a supervisor comes for its run's lease.

    Args:
        key: at least 16 random bytes, the same for as long as the state lives.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @staticmethod
    def new_key() -> str:
        """A key as text, to be kept in the state."""
        return secrets.token_hex(32)

    def make(self, job: int, epoch: int) -> str:
        """The secret of one run."""
        return f"{_PREFIX}.{job}.{epoch}.{self._mac(job, epoch)}"

    def parse(self, token: str) -> tuple[int, int] | None:
        """Job and epoch of a run's secret, None if it is none of ours."""
        parts = token.split(".")
        if len(parts) != 4 or parts[0] != _PREFIX or not (parts[1].isdecimal() and parts[2].isdecimal()):
            return None
        if len(parts[1]) > 18 or len(parts[2]) > 19:
            return None
        job, epoch = int(parts[1]), int(parts[2])
        return (job, epoch) if hmac.compare_digest(self._mac(job, epoch).encode(), parts[3].encode()) else None

    def _mac(self, job: int, epoch: int) -> str:
        digest = hmac.digest(self._key, f"{job}.{epoch}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest[:24]).decode()
