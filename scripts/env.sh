#!/usr/bin/env bash
# Make or refresh the project's own environment in .venv (or $GPUSCHED_VENV): sourced by the other scripts.
#   ensure_env run|dev   leaves $VENV set
set -euo pipefail

ensure_env() {
  local kind=$1 python
  VENV="${GPUSCHED_VENV:-.venv}"
  # A name that is there may be a version manager's stub that runs nothing, so each is tried.
  for python in python3 python3.13 python3.12 python3.11 ""; do
    [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || break
  done
  [ -n "$python" ] || {
    echo "gpusched needs Python 3.11 or newer; python3 here is: $(python3 -V 2>&1 || echo missing)" >&2; exit 1; }
  local stamp
  stamp="$kind $(cksum <pyproject.toml) $(pwd)"
  # What the tests need includes all that a run needs.
  for made in "$kind" dev; do
    if [ "$(cat "$VENV/.gpusched-$made" 2>/dev/null || true)" = "${stamp/#$kind/$made}" ]; then return; fi
  done
  echo "setting up $VENV (first time, or pyproject.toml has changed) ..." >&2
  [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV" || {
    echo "making a virtual environment failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
  local pip=("$VENV/bin/python" -m pip --disable-pip-version-check)
  if [ "$kind" = dev ]; then
    "${pip[@]}" install --quiet "pip>=25.1" # --group is new there
    "${pip[@]}" install --quiet --editable . --group dev
  else
    "${pip[@]}" install --quiet --editable .
  fi
  echo "$stamp" >"$VENV/.gpusched-$kind"
}
