#!/usr/bin/env bash
# Train with Slurm: ./tools/slurm_train.sh PARTITION JOB_NAME CONFIG NUM_PROCS [arguments of tools/train.py]
# GPUS_PER_NODE: processes and GPUs of a node (default 8, at most NUM_PROCS; 0: none, on CPUs). CPUS_PER_TASK (default
# 5), SRUN_ARGS: more options of srun. PORT: of the first node (default 29500).
set -euo pipefail

if [ $# -lt 4 ] || ! [[ $4 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG NUM_PROCS [arguments of tools/train.py]" >&2
    exit 2
fi
partition=$1 job=$2 config=$3 processes=$4
shift 4

tools=$(cd "$(dirname "$0")" && pwd -P)
python=${PYTHON:-$tools/../.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)

gpus=${GPUS_PER_NODE:-8}
[ "$gpus" -le "$processes" ] || gpus=$processes
place=(--partition "$partition" --job-name "$job" --ntasks "$processes" --cpus-per-task "${CPUS_PER_TASK:-5}")
[ "$gpus" -eq 0 ] || place+=(--gres "gpu:$gpus" --ntasks-per-node "$gpus")

# One failed process ends all: the others would wait for it.
# shellcheck disable=SC2086 # SRUN_ARGS are several words
exec srun "${place[@]}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "$python" -u "$tools/train.py" "$config" "$@" --launcher slurm
