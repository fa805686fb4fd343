#!/usr/bin/env bash
# Train with engines on the nodes of a running Ray cluster (see README.md beside this file):
#   RAY_ADDRESS=HEAD:6379 ENGINES=8 examples/ray/train.sh RECIPE.yaml [section.key=value ...]
# NPROC: training processes on this machine (default 1). Without RAY_ADDRESS a cluster of this machine is started for
# the run.
set -euo pipefail

fail() {
    echo "train.sh: $1" >&2
    exit 2
}

[ $# -ge 1 ] && [ -f "$1" ] || fail "expected a recipe as first argument, e.g. examples/recipes/qwen2.5-7b.yaml"
recipe="$(realpath "$1")"
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

[[ "${ENGINES:-1}" =~ ^[1-9][0-9]*$ ]] || fail "ENGINES=$ENGINES: expected the number of engines"
launcher=.venv/bin/torchrun
if [ ! -x "$launcher" ]; then
    launcher="$(command -v torchrun)" || fail "there is no torchrun: create the environment with ./setup_env.sh"
fi
# Seconds that a stopped run has to finish its step and to save it before torchrun kills it.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"
exec "$launcher" --standalone --nproc-per-node "${NPROC:-1}" pretrain_rlpr.py --config "$recipe" \
    rollout.placement=ray rollout.engines="${ENGINES:-1}" "$@"
