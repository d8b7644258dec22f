#!/usr/bin/env bash
# Make or refresh the project's own environment in .venv (or $GPUSCHED_VENV): sourced by the other scripts.
#   ensure_env run|dev   leaves $VENV set
set -euo pipefail

ensure_env() {
  local kind=$1 python
  VENV="${GPUSCHED_VENV:-.venv}"
  python=$(command -v python3.13 || command -v python3.12 || command -v python3.11 || command -v python3 || true)
  [ -n "$python" ] || { echo "gpusched needs Python 3.11 or newer; no python3 was found" >&2; exit 1; }
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "gpusched needs Python 3.11 or newer; $python is $("$python" -V 2>&1)" >&2; exit 1; }
  local stamp
  stamp="$kind $(cksum <pyproject.toml) $(pwd)"
  if [ "$(cat "$VENV/.gpusched-$kind" 2>/dev/null || true)" = "$stamp" ]; then return; fi
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
