#!/usr/bin/env bash
# Train with NUM_PROCS processes on this machine: ./tools/dist_train.sh CONFIG NUM_PROCS [arguments of tools/train.py]
# MAX_RESTARTS=3: after a failure, start the processes again up to three times; they resume from the last checkpoint.
# On several machines set, on each: NNODES, NODE_RANK (from 0), MASTER_ADDR (of node 0), PORT.
exec "$(dirname "$0")/dist_run.sh" train "$@"
