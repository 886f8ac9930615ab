#!/usr/bin/env bash
# What the recipe gives with 20 training subjects, on the packaged activation table and on two others:
#   benchmarks/small_cohorts.sh [FOLDER]
# About half an hour of one core each. The objective of the bundled model, the hybrid of its width, fewer steps (as many epochs as half of its
# training). Test subjects are never looked at before; every step continues where an interrupted call stopped.
set -euo pipefail
root="${1:-small-cohorts}"
here="$(dirname "$0")"
python "$here/other_activations.py" "$root/tables/scattered" --seed 5
python "$here/other_activations.py" "$root/tables/networks" --seed 6 --networks 5

for table in packaged scattered networks; do
    own="$root/$table"
    options=()
    if [ "$table" != packaged ]; then
        options=(--activations "$root/tables/$table/table.tsv" --atlas "$root/tables/$table/atlas.nii.gz")
    fi
    fmrisynth simulate "$own/cohort" --layout blocks --n-subjects 22 --seed 2029 \
        --set split.train=0.91 --set split.val=0.09 --set split.test=0 "${options[@]}"
    fmrisynth simulate "$own/final" --layout blocks --n-subjects 20 --seed 2029 --set first_subject=21000 \
        --set split.all=test "${options[@]}"
    fmrisynth tokenize "$own/cohort" "$own/latents" --set model.storage=float16 --set max_fit_blocks=660 --seed 2029 \
        --set report=false
    fmrisynth train "$own/latents" "$own/model" --preset bundled --steps "${STEPS:-4000}" --seed 2026 \
        --set model.stages=[conv,transformer,transformer] --set model.num_heads=3
    [ -d "$own/silent" ] || python "$here/silence.py" "$own/model" "$own/silent"
    fmrisynth sample "$own/samples" --all-conditions --n 40 --seed 1 --checkpoint "$own/model"
    fmrisynth sample "$own/silenced" --all-conditions --n 20 --seed 1 --checkpoint "$own/silent"
    python "$here/score_datasets.py" "$own/final" "$own/samples" "$own/silenced" --training "$own/cohort" --n 40 | tee "$own/scores.md"
    fmrisynth evaluate "$own/report" --real "$own/final" --synthetic "$own/samples" --set training="$own/cohort" \
        --tokenizer "$own/latents/tokenizer" --truth "$own/final" --set baseline_samples=40 --set baseline_training_blocks=40
done
