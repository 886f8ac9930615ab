# shellcheck shell=bash disable=SC2034
# Common to all job scripts: `source lib.sh` with SETTINGS set. Folders of a study, and how its commands are run.

# shellcheck source=settings.example.sh
source "$SETTINGS"

# These names are the study's layout; the documentation relies on them.
BLOCKS=$WORK/blocks
LATENTS=$WORK/latents
MODEL=$WORK/model
SYNTHETIC=$WORK/synthetic
MAPS_REAL=$WORK/maps-real
MAPS_SYNTHETIC=$WORK/maps-synthetic
REPORT=$WORK/report
INDEX=$WORK/bids-index
LIST=$WORK/participants.txt

# Run a program of the installation, inside the container if there is one.
run() {
    if [[ -n "${CONTAINER:-}" ]]; then
        apptainer exec "${CONTAINER_OPTIONS[@]}" "$CONTAINER" "$@"
    else
        "$@"
    fi
}

# Print the participants that SOURCE holds: HCP folders, or BIDS sub- folders.
participants_of_source() {
    if [[ -n "${PARTICIPANTS:-}" ]]; then
        cat "$PARTICIPANTS"
    elif compgen -G "$SOURCE/*/MNINonLinear" > /dev/null; then
        local folder
        for folder in "$SOURCE"/*/MNINonLinear; do basename "$(dirname "$folder")"; done
    else
        find -L "$SOURCE" -maxdepth 1 -type d -name 'sub-*' -printf '%f\n' | sed 's/^sub-//' | sort
    fi
}

# Print the participants that are complete in a dataset.
participants_done_in() {
    find "$1" -maxdepth 2 -name 'sub-*_scans.tsv' ! -name '.*' -printf '%f\n' \
        | sed 's/^sub-//; s/_scans\.tsv$//' | sort
}

# Of the lines on standard input, print those of this array task.
my_share() {
    awk -v k="${SLURM_ARRAY_TASK_ID:-1}" -v n="${SLURM_ARRAY_TASK_COUNT:-1}" 'NR % n == k % n'
}

# Call a command with `--participant-label` for each line on standard input; with none, do nothing.
for_participants() {
    local labels
    mapfile -t labels
    if ((${#labels[@]} == 0)); then
        echo "Nothing to do for this task."
        return 0
    fi
    run "$@" --participant-label "${labels[@]}"
}

# The step of the newest checkpoint of the model, 0 if there is none.
newest_step() {
    local newest=step-0
    if [[ -d $MODEL/checkpoints ]]; then
        newest=$(find "$MODEL/checkpoints" -maxdepth 1 -name 'step-*' -printf '%f\n' | sort | tail -n 1)
        newest=${newest:-step-0}
    fi
    echo $((10#${newest#step-}))
}

# An index of a BIDS dataset is built once and then only read; an HCP tree needs none.
index_options=()
if ! compgen -G "$SOURCE/*/MNINonLinear" > /dev/null; then
    index_options=(--bids-database-dir "$INDEX")
fi

set_up
