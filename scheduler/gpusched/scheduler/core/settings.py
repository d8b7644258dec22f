"""Knobs of the engine, all in seconds unless said otherwise."""

from __future__ import annotations

from dataclasses import dataclass

#: Largest and smallest priority tier that may be asked for.
MAX_PRIORITY = 100
MIN_PRIORITY = -100


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Attributes:
        confirm_within: how long a granted holder has to say that it is awake.
        end_grace: from the word that a job must end until its lease is taken.
        limit_notice: how long before its time limit a holder is told; a tenth of the limit if that is less.
        set_aside_after: how long a job may block others while its devices are out of service.
        keep_ended: how many ended jobs are remembered.
    """

    confirm_within: float = 5.0
    end_grace: float = 30.0
    limit_notice: float = 60.0
    set_aside_after: float = 60.0
    keep_ended: int = 2000
