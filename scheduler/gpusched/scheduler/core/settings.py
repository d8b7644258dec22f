"""Knobs of the engine, all in seconds unless said otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.core.sharing import RESERVE

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
        keep_ended: how many ended jobs are remembered here (the store keeps more).
        start_within: how long a supervisor has to come for its batch job's lease.
        hold_after_restart: how long the queue waits for clients to come back before it passes over the missing.
        window: how long after a restart holders and waiters have to come back.
        max_queue: most jobs that may wait, 0 for no limit (a count).
        max_running: most jobs that may run, 0 for no limit (a count).
        default_limit: time limit of jobs that name none, None for none.
        max_limit: longest time limit that may be asked for, None for any; jobs that name none get it.
        policy: the order of the queue and who may pass whom.
        share_reserve: part of each GPU's memory that is not given to jobs that share it.
        share_between_users: jobs of several users may share a GPU.
        check_released: look at released devices before they are handed on; False where nothing can be left on them.
    """

    confirm_within: float = 5.0
    end_grace: float = 30.0
    limit_notice: float = 60.0
    set_aside_after: float = 60.0
    keep_ended: int = 2000
    start_within: float = 30.0
    hold_after_restart: float = 2.0
    window: float = 30.0
    max_queue: int = 0
    max_running: int = 0
    default_limit: float | None = None
    max_limit: float | None = None
    policy: PolicySettings = field(default_factory=PolicySettings)
    share_reserve: float = RESERVE
    share_between_users: bool = False
    check_released: bool = True
