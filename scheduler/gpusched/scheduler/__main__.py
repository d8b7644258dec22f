"""`python -m gpusched.scheduler`: the service's own commands."""

import sys

from gpusched.scheduler.main import main

if __name__ == "__main__":
    sys.exit(main())
