#!/usr/bin/env bash
# Generate generated/gpusched/v1 from proto/. `--check` only compares and fails when it is stale.
#
# The generator is pinned to the oldest supported release: code of an old protoc runs on newer protobuf
# runtimes, never the other way round, so this pin sets the lower bounds in pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."

TOOLS="grpcio-tools==1.62.3"
PROTOBUF="protobuf==4.25.8"
SETUPTOOLS="setuptools==75.8.0" # grpcio-tools of that age needs pkg_resources
STAMP="$TOOLS $PROTOBUF $SETUPTOOLS"
VENV="${GPUSCHED_PROTO_VENV:-.venvs/protos}"

if [ "$(cat "$VENV/stamp" 2>/dev/null || true)" != "$STAMP" ]; then
  rm -rf "$VENV"
  python3 -m venv "$VENV"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: "$TOOLS" "$PROTOBUF" "$SETUPTOOLS"
  echo "$STAMP" >"$VENV/stamp"
fi

generate() {
  "$VENV/bin/python" -W ignore -m grpc_tools.protoc -Iproto \
    --python_out="$1" --pyi_out="$1" --grpc_python_out="$1" proto/gpusched/v1/*.proto
  # Only files with a service have gRPC code worth keeping.
  for file in "$1"/gpusched/v1/*_pb2_grpc.py; do
    grep -q "Servicer" "$file" || rm "$file"
  done
}

if [ "${1:-}" = "--check" ]; then
  fresh=$(mktemp -d)
  trap 'rm -rf "$fresh"' EXIT
  mkdir -p "$fresh/gpusched/v1"
  generate "$fresh"
  touch "$fresh/gpusched/v1/__init__.py" "$fresh/gpusched/v1/py.typed"
  if ! diff -r -x __pycache__ "$fresh/gpusched" generated/gpusched; then
    echo "generated/ is stale: run scripts/gen_protos.sh and commit the result" >&2
    exit 1
  fi
  echo "generated/ is up to date"
else
  rm -f generated/gpusched/v1/*_pb2*.py generated/gpusched/v1/*_pb2*.pyi
  generate generated
fi
