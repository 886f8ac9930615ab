#!/usr/bin/env bash
# The recipe of the bundled model, from a seed: benchmarks/bundled_model.sh [FOLDER]
# Takes a few hours on 2 CPU cores; every step continues where an interrupted call stopped.
# The cohort `final` is simulated from subjects that no fit and no choice has seen; it is read once, at the end.
# Other activation tables and fewer subjects: small_cohorts.sh.
set -euo pipefail
root="${1:-bundled-model}"
here="$(dirname "$0")"

fmrisynth simulate "$root/cohort" --layout blocks --n-subjects 40 --seed 2028 \
    --set split.train=0.8 --set split.val=0.08 --set split.test=0.12
fmrisynth simulate "$root/final" --layout blocks --seed 2028 --set first_subject=22000 --set split.all=test --n-subjects 40
fmrisynth tokenize "$root/cohort" "$root/latents" --set model.storage=float16 --set max_fit_blocks=1000 --seed 2028 \
    --set report=false
fmrisynth train "$root/latents" "$root/model" --preset bundled --seed 2026

# How its people look: other people of the same phantom.
fmrisynth simulate "$root/people" --layout anatomy --n-subjects 480 --seed 2028 --set first_subject=60000 \
    --set split.train=0.8 --set split.val=0.05 --set split.test=0.15
fmrisynth tokenize "$root/people" "$root/anatomy-latents" --preset anatomy --seed 2028
fmrisynth train "$root/anatomy-latents" "$root/anatomy-model" --preset anatomy --seed 2026

python "$here/bundle_model.py" "$root/model" "$root/anatomy-model" "$root/bundled"
python "$here/bundle_model.py" "$root/model" "$root/anatomy-model" fmrisynth/bundled

# The model, the model told no condition, and the model whose network is silent, each against the same subjects.
[ -d "$root/silent" ] || python "$here/silence.py" "$root/bundled" "$root/silent"
fmrisynth sample "$root/samples" --all-conditions --n 100 --seed 1 --checkpoint "$root/bundled"
fmrisynth sample "$root/untold" --all-conditions --n 40 --seed 1 --checkpoint "$root/bundled" --guidance 0 --anatomy mean
fmrisynth sample "$root/silenced" --all-conditions --n 40 --seed 1 --checkpoint "$root/silent" --anatomy mean
fmrisynth evaluate "$root/report" --real "$root/final" --synthetic "$root/samples" --set training="$root/cohort" \
    --tokenizer "$root/latents/tokenizer" --truth "$root/final" \
    --set baseline_samples=100 --set baseline_training_blocks=100

# For the card.
python "$here/score_datasets.py" "$root/final" "$root/samples" "$root/untold" "$root/silenced" --training "$root/cohort" --n 100
python "$here/card_tables.py" "$root/report"
