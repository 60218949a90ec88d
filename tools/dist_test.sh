#!/usr/bin/env bash
# Test with NUM_PROCS processes: ./tools/dist_test.sh CONFIG CHECKPOINT NUM_PROCS [arguments of tools/test.py]
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT NUM_PROCS [arguments]" >&2
    exit 2
fi
config=$1 checkpoint=$2 processes=$3
shift 3
exec "$(dirname "$0")/dist_run.sh" test "$config" "$processes" "$checkpoint" "$@"
