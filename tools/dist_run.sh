#!/usr/bin/env bash
# Used by dist_train.sh and dist_test.sh: dist_run.sh VERB CONFIG NUM_PROCS [arguments of tools/VERB.py]
set -euo pipefail

if [ $# -lt 3 ] || ! [[ $3 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: ./tools/dist_${1:-train}.sh CONFIG NUM_PROCS [arguments of tools/${1:-train}.py]" >&2
    exit 2
fi
verb=$1 config=$2 processes=$3
shift 3

tools=$(cd "$(dirname "$0")" && pwd -P)
python=${PYTHON:-$tools/../.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)

# The cores are shared among the processes; torchrun would give each a single thread.
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}

if [ "${NNODES:-1}" -gt 1 ] || [ -n "${PORT:-}" ]; then
    rendezvous=(--nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}"
        --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}")
else
    rendezvous=(--standalone)  # one machine: a free port, so that runs side by side do not meet
fi
export PYTHONPATH=$tools/..${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m lbitcls.utils.launch "${rendezvous[@]}" --nproc_per_node "$processes" \
    --max_restarts "${MAX_RESTARTS:-0}" "$tools/$verb.py" "$config" "$@" --launcher pytorch
