#!/bin/sh
# A one-minute check of an installation: two synthetic subjects from the bundled model, and their maps.
set -eu
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
fmrisynth --version
fmrisynth sample --condition gambling_loss --n 2 --steps 4 --seed 1 "$out/synthetic"
fmrisynth glm "$out/synthetic" "$out/maps"
test "$(find "$out/synthetic" -name '*_bold.nii.gz' | wc -l)" -eq 2
test -n "$(find "$out/maps/group" -name '*_stat-z_statmap.nii.gz')"
echo "fmrisynth works"
