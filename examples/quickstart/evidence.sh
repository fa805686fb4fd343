#!/usr/bin/env bash
# Train the quickstart with three seeds and its control, and draw what they reached on the held-out questions:
#   examples/quickstart/evidence.sh [key=value ...]
# RUNS is the folder of the runs (runs), RANKS the processes of each (2). Finished trainings are not repeated: a run that
# was stopped goes on. The picture is $RUNS/headline.svg, the table of it is printed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

runs="${RUNS:-runs}"
python="${PYTHON:-.venv/bin/python}"
train() { # name, configuration, seed, key=value ...
    "$python" -m tools.launch --nproc-per-node "${RANKS:-2}" pretrain_rlpr.py --config "examples/quickstart/$2.yaml" \
        "trainer.runs_dir=$runs" "trainer.name=$1" "trainer.seed=$3" "data.seed=$3" "${@:4}"
}
for seed in 1 2 3; do
    train "seed-$seed" config "$seed" "$@"
done
train format-alone format_only 1 "$@"
"$python" -m tools.headline --out "$runs/headline.svg" "$runs/seed-1" "$runs/seed-2" "$runs/seed-3" \
    --control "$runs/format-alone"
