"""Saving before telling: changes gather while a save is under way, and go out together in the next one.

A batch that somebody waits for across a power loss is synced on a worker thread; any other is one short
write in place, since a detour over a thread would cost more than the write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from gpusched.scheduler.codec import Specs, batch_of
from gpusched.scheduler.core.changes import Changes
from gpusched.scheduler.logs import log_event
from gpusched.scheduler.ports import Store, StoreError

log = logging.getLogger("gpusched.store")

#: Seconds between two tries to save while the store refuses.
RETRY_EVERY = 1.0


class Saver:
    """Saves what the engine changed.

    Args:
        store: where to; None keeps nothing.
        on_trouble: called with a sentence when saving begins to fail, and with None when it works again.
    """

    def __init__(self, store: Store | None, on_trouble: Callable[[str | None], None]) -> None:
        self._store = store
        self._on_trouble = on_trouble
        self._executor = ThreadPoolExecutor(1, "store") if store is not None else None
        self._unsaved = Changes()
        self._specs: Specs = {}
        self.trouble: str | None = None

    @property
    def in_place(self) -> bool:
        """True if nothing is kept, so that nothing has to be waited for."""
        return self._store is None

    @property
    def behind(self) -> bool:
        """True between two tries: something that happened is not saved."""
        return bool(self._unsaved)

    def save(self, changes: Changes, done: Callable[[bool], None]) -> bool:
        """Save changes, and those that could not be saved before.

        Args:
            changes: taken from the engine; not to be touched any more.
            done: called once, with whether all is saved; before this returns if that is True.

        Returns:
            False if the save goes on on another thread.
        """
        if self._store is None:
            done(True)
            return True
        if self._unsaved:
            changes, self._unsaved = self._unsaved.before(changes), Changes()
        if not changes:
            done(True)
            return True
        batch = batch_of(changes, self._specs)
        store = self._store
        if not batch.sync:
            try:
                store.commit(batch)
            except Exception as error:  # a bug must not leave everybody waiting for ever, either
                self._failed(changes, error)
                done(False)
            else:
                self._worked()
                done(True)
            return True
        assert self._executor is not None
        future = asyncio.get_running_loop().run_in_executor(self._executor, store.commit, batch)

        def finish(future: asyncio.Future[None]) -> None:
            error = future.exception()
            if error is None:
                self._worked()
            else:
                self._failed(changes, error)
            done(error is None)

        future.add_done_callback(finish)
        return False

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True)

    def _worked(self) -> None:
        if self.trouble is not None:
            self.trouble = None
            log_event(log, "state can be saved again")
            self._on_trouble(None)

    def _failed(self, changes: Changes, error: BaseException) -> None:
        self._unsaved = changes.before(self._unsaved)
        if not isinstance(error, StoreError):
            log.error("saving failed unexpectedly", exc_info=error)
        if self.trouble is None:
            self.trouble = str(error)
            text = "state cannot be saved; nothing is started until it can"
            log_event(log, text, level=logging.ERROR, message=self.trouble)
            self._on_trouble(self.trouble)
