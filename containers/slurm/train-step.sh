#!/bin/bash
# The part of train.sbatch that srun starts once on every node: torchrun, which starts one process per GPU.
set -euo pipefail
SLURM_DIR=$1 SETTINGS=$2
shift 2
source "$SLURM_DIR/lib.sh"

# Shortly before the time limit, Slurm sends USR1 to every process of the step. The trainer saves and stops when it gets
# it; torchrun would die of it, so it is started with the signal ignored (the trainer installs a handler of its own).
trap '' USR1
run torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$GPUS_PER_NODE" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$MAIN_NODE:$((20000 + SLURM_JOB_ID % 20000))" \
    -m fmrisynth train "$LATENTS" "$MODEL" "${TRAIN_OPTIONS[@]}" "$@"
