#!/usr/bin/env bash
# Run the tests in the project's own environment, which is made when it is missing.
#   scripts/test.sh            everything
#   scripts/test.sh --fast     without the tests marked slow
#   scripts/test.sh --setup    only make the environment
#   scripts/test.sh [pytest arguments]
# Tests mostly wait for processes, so several files run at a time: GPUSCHED_TEST_JOBS, 3 by default, 0 for one by one.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
ensure_env dev
case "${1:-}" in
  --setup) exit 0 ;;
  --fast) shift; set -- -m "not slow" "$@" ;;
esac
exec "$VENV/bin/python" -m pytest -n "${GPUSCHED_TEST_JOBS:-3}" --dist loadfile "$@"
