"""The console script `gsrun`: ^C ends it without a traceback, from the first thing that it imports on."""

import _signal  # type: ignore[import-not-found]  # what `signal` is made of, without its imports

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from gpusched.client.gsrun.main import main

__all__ = ["main"]
