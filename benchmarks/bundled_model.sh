#!/usr/bin/env bash
# The recipe of the bundled model, from a seed: benchmarks/bundled_model.sh [FOLDER]
# Takes a few hours on 2 CPU cores; every step continues where an interrupted call stopped.
set -euo pipefail
root="${1:-bundled-model}"
here="$(dirname "$0")"

fmrisynth simulate "$root/cohort" --layout blocks --n-subjects 96 --seed 2026 \
    --set split.train=0.75 --set split.val=0.05 --set split.test=0.2
fmrisynth tokenize "$root/cohort" "$root/latents" --set model.storage=float16 --set max_fit_blocks=1000 --seed 2026
fmrisynth train "$root/latents" "$root/model" --preset bundled --seed 2026
python "$here/bundle_model.py" "$root/model" fmrisynth/bundled

fmrisynth sample "$root/synthetic" --all-conditions --n 100 --seed 1
fmrisynth evaluate "$root/report" --real "$root/cohort" --synthetic "$root/synthetic"
