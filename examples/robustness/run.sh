#!/usr/bin/env bash
# Train the quickstart once with each prompt template, and draw the runs side by side:
#   examples/robustness/run.sh [key=value ...]
# RUNS is the folder of the runs (runs), RANKS the processes of each (2). Finished trainings are not repeated: a run that
# was stopped goes on. The picture is $RUNS/robustness.png.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

runs="${RUNS:-runs}"
python="${PYTHON:-.venv/bin/python}"
declare -A format_mode=([R1]=R1 [R1_nothink]=R1_nothink [plain]=R1_nothink)
folders=()
for template in R1 R1_nothink plain; do
    "$python" -m tools.launch --nproc-per-node "${RANKS:-2}" pretrain_rlpr.py \
        --config examples/robustness/config.yaml "$@" "trainer.runs_dir=$runs" "trainer.name=robustness-$template" \
        "data.template=$template" "reward.format_mode=${format_mode[$template]}"
    folders+=("$runs/robustness-$template")
done
"$python" -m tools.curves --out "$runs/robustness.png" "${folders[@]}"
