#!/usr/bin/env bash
# A model of real data: twelve coarse runs of one person looking at eight kinds of pictures (Haxby et al. 2001, at 25 mm).
#   benchmarks/haxby.sh HAXBY FOLDER
# HAXBY is a BIDS folder with sub-01_task-objectviewing_run-01 to -12 and masks/brain.nii.gz. Runs 1 to 8 train, 9 to 12 test; each
# run stands in for a participant, so that intervals and ceilings are over runs. About ten minutes on one core; every step continues.
set -euo pipefail
haxby="$(realpath "$1")"
root="$2"

mkdir -p "$root/bids"
cp "$haxby"/dataset_description.json "$haxby"/task-objectviewing_bold.json "$root/bids/"
for run in $(seq -w 1 12); do
    name="sub-run$run/func/sub-run${run}_task-objectviewing"
    source="$haxby/sub-01/func/sub-01_task-objectviewing_run-$run"
    mkdir -p "$root/bids/sub-run$run/func"
    ln -sfn "${source}_bold.nii.gz" "$root/bids/${name}_bold.nii.gz"
    ln -sfn "${source}_events.tsv" "$root/bids/${name}_events.tsv"
    ln -sfn "$haxby/masks/brain.nii.gz" "$root/bids/${name}_desc-brain_mask.nii.gz"
done

prepare() { # split, participants
    fmrisynth prepare "$root/bids" "$root/$1" --native --participant-label "${@:2}" --set split.all="$1" --seed 1
}
prepare train run01 run02 run03 run04 run05 run06 run07 run08
prepare test run09 run10 run11 run12
fmrisynth tokenize "$root/train" "$root/latents" --set model.channels=16 --set report=false --seed 1
fmrisynth train "$root/latents" "$root/model" --preset bundled --set steps=3000 --set checkpoint_every=500 --seed 1 \
    --set model.stages=[conv,transformer,transformer] --set model.num_heads=3
fmrisynth sample "$root/synthetic" --checkpoint "$root/model" --all-conditions --n 50 --seed 1
fmrisynth evaluate "$root/report" --real "$root/test" --synthetic "$root/synthetic" --set training="$root/train" \
    --tokenizer "$root/latents/tokenizer" --set baseline_samples=50
