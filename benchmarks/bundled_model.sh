#!/usr/bin/env bash
# The recipe of the bundled model, from a seed: benchmarks/bundled_model.sh [FOLDER [simulate options]]
# Takes a few hours on 2 CPU cores; every step continues where an interrupted call stopped.
# The cohort `final` is simulated from subjects that no fit and no choice has seen; it is read once, at the end.
# Further options go to `simulate`: --activations table.tsv --atlas labels.nii.gz retrains on another phantom, and then the
# model stays in FOLDER instead of replacing the package's.
set -euo pipefail
root="${1:-bundled-model}"
shift || true
here="$(dirname "$0")"

fmrisynth simulate "$root/cohort" --layout blocks --n-subjects 96 --seed 2026 \
    --set split.train=0.75 --set split.val=0.05 --set split.test=0.2 "$@"
fmrisynth simulate "$root/final" --layout blocks --n-subjects 40 --seed 2026 --set first_subject=17000 --set split.all=test "$@"
fmrisynth tokenize "$root/cohort" "$root/latents" --set model.storage=float16 --set max_fit_blocks=1000 --seed 2026 \
    --set report=false
fmrisynth train "$root/latents" "$root/model" --preset bundled --seed 2026
python "$here/bundle_model.py" "$root/model" "$root/bundled"
if [ $# -eq 0 ]; then python "$here/bundle_model.py" "$root/model" fmrisynth/bundled; fi

fmrisynth sample "$root/synthetic" --all-conditions --n 100 --seed 1 --checkpoint "$root/bundled"
fmrisynth evaluate "$root/report" --real "$root/final" --synthetic "$root/synthetic" --set training="$root/cohort" \
    --tokenizer "$root/latents/tokenizer" --truth "$root/final" \
    --set baseline_samples=100 --set baseline_training_blocks=100
python "$here/card_tables.py" "$root/report"  # for the card
