# shellcheck shell=bash disable=SC2034,SC2054
# Settings of one study on a cluster: copy this file, change it, and call submit.sh with the copy.

# What to read, and where to write. WORK must be on a file system that all nodes see.
SOURCE=/data/HCP1200
WORK=/scratch/$USER/fmrisynth-study

# How a node finds fmrisynth: an Apptainer image ...
CONTAINER=/apps/fmrisynth.sif
CONTAINER_OPTIONS=(--cleanenv --nv --bind /data,/scratch)
# ... or, with CONTAINER empty, a virtual environment or modules, set up here (this runs on every node).
set_up() { :; }

# Participants: one label per line; empty means every one in SOURCE.
PARTICIPANTS=

# Options of the commands, as you would type them.
PREPARE_OPTIONS=()
TOKENIZE_OPTIONS=()
TRAIN_OPTIONS=(--preset hybrid-38m)
SAMPLE_OPTIONS=(--n 100)
GLM_OPTIONS=()
EVALUATE_OPTIONS=()

# Shape of the jobs. An array has at most ARRAY_TASKS tasks; each takes its share of participants or samples.
ARRAY_TASKS=100
TRAIN_NODES=1
GPUS_PER_NODE=4
# Minutes before the end of the job at which training stops by itself, saves and is queued again.
TRAIN_MARGIN_MIN=10

# Options for sbatch: your partitions, account, and limits where those in the job scripts do not fit.
SBATCH_OPTIONS=(--account=mylab)
SBATCH_CPU=(--partition=cpu)
SBATCH_GPU=(--partition=gpu --gpus-per-node=4)
SBATCH_TRAIN=(--time=24:00:00)
