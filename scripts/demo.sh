#!/usr/bin/env bash
# gpusched at work, in half a minute: a scheduler, three jobs for two GPUs, and one of them killed with -9.
#   scripts/demo.sh               real GPUs where there are idle ones, else two simulated ones
#   scripts/demo.sh --simulated   simulated ones in any case
# It needs Python 3.11 or newer and nothing else: no GPU, no root, nothing installed before. What it starts has a port
# and a directory of its own and is gone at the end. The jobs only sleep; they do not touch the GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' scripts/demo.sh; }
mode=auto
case "${1:-}" in
  "") ;;
  --simulated) mode=simulated ;;
  -h | --help) usage; exit 0 ;;
  *) echo "demo: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
esac

. scripts/env.sh
if [ -e "${GPUSCHED_VENV:-.venv}/.gpusched-dev" ]; then ensure_env dev; else ensure_env run; fi
PATH="$(cd "$VENV/bin" && pwd):$PATH"
# Whoever starts the demo may have a scheduler of their own, or sit inside a lease of one.
for name in $(compgen -v GPUSCHED_) CUDA_VISIBLE_DEVICES; do unset "$name"; done

dir=$(mktemp -d "${TMPDIR:-/tmp}/gpusched-demo.XXXXXX")
export GPUSCHED_STATE_DIR="$dir/state" GPUSCHED_AUTOSTART=0
jobs=()

# -- how it looks -------------------------------------------------------------------------------------------

bold="" dim="" plain=""
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
  bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'
fi
say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }
note() { printf '%s\n' "$*"; }
show() { printf '%s$ %s%s\n' "$dim" "$*" "$plain"; }
run() { show "$@"; "$@"; }
milliseconds() { local now=${EPOCHREALTIME/[.,]/}; echo $((now / 1000)); }

# -- how it ends --------------------------------------------------------------------------------------------

gone() { # waits at most $1 tenths of a second until none of the processes after it is left
  local tenths=$1 pid left
  shift
  while :; do
    left=0
    for pid in "$@"; do if kill -0 "$pid" 2>/dev/null; then left=1; fi; done
    [ "$left" = 0 ] && return 0
    [ "$((tenths--))" -gt 0 ] || return 1
    sleep 0.1
  done
}

clean_up() {
  local status=$?
  trap '' INT TERM HUP
  trap - EXIT
  if [ ${#jobs[@]} -gt 0 ]; then
    kill "${jobs[@]}" 2>/dev/null || true
    gone 50 "${jobs[@]}" || true
  fi
  gpusched stop --timeout 5s >/dev/null 2>&1 || true
  if [ "$status" != 0 ]; then
    printf '\ndemo: ended early (status %s); everything that it started is stopped\n' "$status" >&2
    [ "$status" -ge 128 ] || tail -n 5 "$dir"/state/server.log "$dir"/*.err >&2 2>/dev/null || true
  fi
  rm -rf "$dir"
  exit "$status"
}
trap clean_up EXIT
# Deaf from the first signal on: bash runs the trap for ^C once more if a command died of the same ^C.
trap 'trap "" INT TERM HUP; exit 130' INT
trap 'trap "" INT TERM HUP; exit 143' TERM
trap 'trap "" INT TERM HUP; exit 129' HUP

until_true() { # until_true SECONDS WHAT COMMAND…
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    if [ "$SECONDS" -ge "$deadline" ]; then echo "demo: not in time: $what" >&2; exit 1; fi
    sleep 0.02
  done
}

# -- a scheduler --------------------------------------------------------------------------------------------

start() { # start ARGUMENTS…: a scheduler on a free port, in the background
  gpusched serve --detach --port 0 "$@" 2>"$dir/serve.err" || return 1
  GPUSCHED_URL=$(sed -n 's/.*serving on \([0-9.:]*\).*/\1/p' "$dir/serve.err")
  export GPUSCHED_URL
}
free_gpus() { gpusched status --json | python -c 'import json, sys; print(json.load(sys.stdin)["gpus_free"])'; }

say "A scheduler for this machine, on a port of its own."
free=0
if [ "$mode" = auto ]; then
  if start --gpus real; then
    free=$(free_gpus)
    if [ "$free" -lt 2 ]; then
      note "This machine has only $free idle GPU(s), so: simulated ones."
      gpusched stop --timeout 5s >/dev/null 2>&1
      free=0
    fi
  else
    note "$(sed 's/^gpusched: //; s/ (.*//; s/[.;:] .*//; 1q' "$dir/serve.err"), so: two simulated ones. All else is real."
  fi
fi
if [ "$free" -ge 2 ]; then
  show gpusched serve --detach
else
  show gpusched serve --detach --simulate 2
  start --simulate 2
  free=2
fi
cat "$dir/serve.err" >&2
first=$((free - 1))

# -- three jobs for its GPUs --------------------------------------------------------------------------------

job() { # job NAME GPUS SECONDS: a gsrun in the background; its words go to the terminal, as they would
  local name=$1 gpus=$2 seconds=$3
  show "gsrun -n $gpus --name $name sleep $seconds &"
  # The command first notes the moment at which it began, and who it is; then it is the sleep.
  gsrun -n "$gpus" --name "$name" bash -c \
    'echo "${EPOCHREALTIME/[.,]/} $$ $CUDA_VISIBLE_DEVICES" >"$0.new"; mv "$0.new" "$0"; exec sleep "$1"' \
    "$dir/$name" "$seconds" &
  jobs+=("$!")
  disown # the shell is not to report its death, which is planned
}
runs() { [ -s "$dir/$1" ]; }
field() { cut -d' ' -f"$2" "$dir/$1"; }
waits() { gpusched jobs --state queued --quiet 2>/dev/null | grep -q .; }

say "Two jobs, ann and bob, take all $free GPUs. gsrun waits for GPUs, runs a command on them, gives them back."
job ann "$first" 60
until_true 10 "ann runs" runs ann
note "  ann has GPU $(field ann 3)"
job bob 1 60
until_true 10 "bob runs" runs bob
note "  bob has GPU $(field bob 3)"

say "A third one, cem, comes. Its line below is live: place in the queue, reason, time waited."
job cem 1 2
until_true 10 "cem waits" waits
sleep 3.5

began=$(milliseconds)
kill -9 "${jobs[0]}"
until_true 10 "cem runs" runs cem
took=$(($(field cem 1) / 1000 - began))
say "kill -9 of ann's gsrun. $took ms later cem's command ran, on GPU $(field cem 3)."
gone 20 "$(field ann 2)" && note "  ann's command (pid $(field ann 2)) is dead too: nothing is left on a GPU that others get."

say "Who holds what:"
run gpusched jobs --all
echo
run gpusched gpus

say "cem's command ends by itself, and bob's is asked to."
bob=$(gpusched jobs --name bob --quiet)
show "gpusched cancel --reason 'the demo is over' $bob"
gpusched cancel --reason "the demo is over" "$bob"
gone 100 "${jobs[@]}" || { echo "demo: a job did not end" >&2; exit 1; }
run gpusched jobs --all
jobs=()

say "The scheduler is stopped, and nothing is left behind."
run gpusched stop
note "
Next: README.md, \"The first five minutes\"."
