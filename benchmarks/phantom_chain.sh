#!/usr/bin/env bash
# The whole chain on a phantom cohort, from nothing to an HTML report, in minutes on 2 cores:
#   benchmarks/phantom_chain.sh [FOLDER]
# Small models and few steps: it shows that the stages join, not what the method can do.
set -euo pipefail
root="${1:-phantom-chain}"
seed="${SEED:-1}"

fmrisynth simulate "$root/phantom" --layout hcp --resolution 3 --n-subjects "${SUBJECTS:-12}" \
    --tasks GAMBLING MOTOR LANGUAGE --seed "$seed"
fmrisynth prepare "$root/phantom" "$root/blocks" --seed "$seed" \
    --set split.train=0.6 --set split.val=0.1 --set split.test=0.3
fmrisynth tokenize "$root/blocks" "$root/latents" --seed "$seed"
fmrisynth train "$root/latents" "$root/model" --preset smoke --seed "$seed"
fmrisynth sample "$root/synthetic" --checkpoint "$root/model" --all-conditions --n "${SAMPLES:-12}" --seed "$seed"
fmrisynth glm "$root/synthetic" "$root/maps-synthetic"
fmrisynth glm "$root/blocks" "$root/maps-real" --split test
fmrisynth evaluate "$root/report" --real "$root/blocks" --synthetic "$root/synthetic" --seed "$seed"
echo "open $root/report/report.html"
