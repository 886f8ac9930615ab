#!/bin/bash
# Submit a whole study to Slurm, every stage after the one it needs:
#
#   submit.sh SETTINGS                 everything; what is already done is recognised and skipped
#   submit.sh SETTINGS --from train    this stage and the later ones
#   submit.sh SETTINGS --keep-going    go on without the participants that failed
#   submit.sh SETTINGS --dry-run       print the sbatch commands
#   submit.sh SETTINGS --cancel        cancel the jobs of the last submission
#
# SETTINGS is a copy of settings.example.sh. Stages: prepare tokenize train sample evaluate.
set -euo pipefail
SLURM_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

[[ $# -ge 1 && -f $1 ]] || usage
SETTINGS=$(realpath "$1")
shift
from=prepare keep_going=false dry_run=false cancel=false
while (($#)); do
    case $1 in
        --from) from=${2:-} && shift ;;
        --keep-going) keep_going=true ;;
        --dry-run) dry_run=true ;;
        --cancel) cancel=true ;;
        *) usage ;;
    esac
    shift
done
stages=(prepare tokenize train sample evaluate)
[[ " ${stages[*]} " == *" $from "* ]] || usage

# shellcheck source=lib.sh
source "$SLURM_DIR/lib.sh"
JOBS=$WORK/jobs.tsv

if $cancel; then
    [[ -f $JOBS ]] || { echo "$JOBS: there is no submission to cancel." >&2; exit 1; }
    cut -f 2 "$JOBS" | xargs scancel
    exit 0
fi

# Two submissions of one study would do the same work twice.
if ! $dry_run && [[ -s $JOBS ]]; then
    running=$(squeue --noheader --format %A --jobs "$(cut -f 2 "$JOBS" | paste -sd ,)" 2> /dev/null || true)
    if [[ -n "$running" ]]; then
        echo "$JOBS: jobs of an earlier submission are still in the queue; wait, or call with --cancel." >&2
        exit 1
    fi
fi

n_participants=0
if [[ -d $SOURCE ]]; then n_participants=$(participants_of_source | wc -l); fi
if ((n_participants == 0)); then
    echo "$SOURCE: expected an HCP tree or sub- folders, found no participant; check SOURCE in $SETTINGS." >&2
    exit 1
fi
n_tasks=$((n_participants < ARRAY_TASKS ? n_participants : ARRAY_TASKS))
if ! $dry_run; then
    mkdir -p "$WORK/slurm-logs"
    participants_of_source > "$LIST"
    : > "$JOBS"
fi

# submit NAME "DEPENDENCY ..." SCRIPT [ARGUMENT] -- [SBATCH OPTION ...]; the job's number goes to ids[NAME].
# A dependency is a job's name; jobs of stages that are left out are taken as done.
declare -A ids
submit() {
    local name=$1 needs=$2 script=$3 arguments=()
    shift 3
    while [[ $1 != -- ]]; do arguments+=("$1") && shift; done
    shift
    local after='' need relation
    for need in $needs; do
        [[ -n "${ids[$need]:-}" ]] || continue
        relation=afterok
        if $keep_going && [[ " ${arrays[*]} " == *" $need "* ]]; then relation=afterany; fi
        after+=",$relation:${ids[$need]}"
    done
    local command=(sbatch --parsable --job-name="fmrisynth-$name" --output="$WORK/slurm-logs/$name-%A_%a.log" --open-mode=append
        --kill-on-invalid-dep=yes ${after:+--dependency="${after#,}"}
        "${SBATCH_OPTIONS[@]}" "$@" "$SLURM_DIR/$script" "$SLURM_DIR" "$SETTINGS" "${arguments[@]}")
    if $dry_run; then
        printf '%q ' "${command[@]}"
        echo
        ids[$name]="<$name>"
    else
        local answer
        answer=$("${command[@]}")
        ids[$name]=${answer%%;*}
        printf '%s\t%s\n' "$name" "${ids[$name]}" | tee -a "$JOBS"
    fi
}

# Whether a stage is asked for.
wanted() {
    local stage
    for stage in "${stages[@]}"; do
        [[ $stage == "$from" ]] && started=true
        [[ $stage == "$1" ]] && break
    done
    ${started:-false}
}

arrays=(prepare tokenize glm-real)
array=(--array="1-$n_tasks")
sample_array=(--array="1-$ARRAY_TASKS")
cpu=("${SBATCH_CPU[@]}")
gpu=("${SBATCH_GPU[@]}")

if wanted prepare; then
    submit plan "" plan.sbatch -- "${cpu[@]}"
    submit prepare "plan" prepare.sbatch -- "${cpu[@]}" "${array[@]}"
    submit glm-real "prepare" glm.sbatch real -- "${cpu[@]}" "${array[@]}"
    submit group-real "prepare glm-real" group.sbatch real -- "${cpu[@]}"
fi
if wanted tokenize; then
    submit fit "prepare" fit.sbatch -- "${cpu[@]}"
    submit tokenize "fit" tokenize.sbatch -- "${cpu[@]}" "${array[@]}"
    submit tokenizer-report "tokenize" tokenizer-report.sbatch -- "${cpu[@]}"
fi
if wanted train; then
    submit train "tokenize" train.sbatch -- "${gpu[@]}" --nodes="$TRAIN_NODES" "${SBATCH_TRAIN[@]}"
fi
if wanted sample; then
    submit sample "train" sample.sbatch -- "${gpu[@]}" "${sample_array[@]}"
    submit gather "sample" gather.sbatch -- "${gpu[@]}"
    submit glm-synthetic "gather" glm.sbatch synthetic -- "${cpu[@]}" "${sample_array[@]}"
    submit group-synthetic "glm-synthetic" group.sbatch synthetic -- "${cpu[@]}"
fi
if wanted evaluate; then
    submit evaluate "prepare tokenize gather" evaluate.sbatch -- "${cpu[@]}"
fi
$dry_run || echo "When all are done: $REPORT/report.html; logs are in $WORK/slurm-logs."
