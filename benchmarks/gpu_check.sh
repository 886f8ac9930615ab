#!/usr/bin/env bash
# What a GPU makes of this: needs nothing but the package and about ten minutes.
#   benchmarks/gpu_check.sh [OUT [DEVICE]]         on an A100 or H100: benchmarks/gpu_check.sh gpu-check cuda
# Writes Markdown and JSON to OUT: step time, memory and share of the measured matrix rate of every size at batch 16 (eager, and two sizes
# compiled), the U-Net beside them, seconds per sample, and one short training from a phantom cohort to a Corr. With DEVICE cpu it runs in
# its smallest form, which tests the script and says nothing about speed.
set -euo pipefail
out="$(realpath -m "${1:-gpu-check}")"
device="${2:-cuda}"
cd "$(dirname "$0")"
mkdir -p "$out"

if [ "$device" = cpu ]; then
    sizes=(smoke) compiled=() speed=(--batch-size 2 --steps 1 --rounds 1) subjects=12 steps=20 n=4 sampling=(--n 1 --full-steps 2 --presets smoke smoke)
else
    sizes=(hybrid-38m hybrid-85m hybrid-151m hybrid-236m hybrid-340m hybrid-463m unet-41m unet-84m unet-141m unet-237m unet-476m)
    compiled=(hybrid-38m hybrid-463m) speed=(--batch-size 16 --steps 20 --rounds 1) subjects=50 steps=3000 n=40
    sampling=(--n 4 --device "$device")
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/device.txt"
fi

# The cohort is made by the CPU while the GPU is timed.
study="$out/study.yaml"
cat > "$study" << EOF
cohort: {n_subjects: $subjects, seed: 1, split: {train: 0.6, val: 0.1, test: 0.3}}
tokenize: {seed: 1, max_fit_blocks: 600, report: false}
sampling: {n: $n, sampler: ab2, steps: 20, guidance: 1.0, seed: 1}
preset: bundled
base: {steps: $steps, precision: auto, device: $device, log_every: 100, val_every: $steps, checkpoint_every: $steps}
seeds: [1]
main_seeds: [1]
tables: [{name: gpu, title: One short training, arms: {bundled: {}}}]
EOF
python study/run.py "$out/study" --study "$study" --prepare-only > "$out/cohort.log" 2>&1 &
cohort=$!

python train_speed.py "${sizes[@]}" --device "$device" "${speed[@]}" --json "$out/eager.json" | tee "$out/eager.md"
if [ ${#compiled[@]} -gt 0 ]; then
    python train_speed.py "${compiled[@]}" --device "$device" "${speed[@]}" --compile --json "$out/compiled.json" | tee "$out/compiled.md"
fi
python sampling_speed.py "${sampling[@]}" | tee "$out/sampling.md"
wait "$cohort"
python study/run.py "$out/study" --study "$study" --threads "$(nproc)" | tee "$out/training.log"
cat "$out"/study/results/*.json
