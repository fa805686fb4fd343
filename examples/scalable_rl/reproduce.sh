#!/usr/bin/env bash
# Train one of the published set-ups, or only validate it, on one machine or several (see README.md beside this file):
#   MODEL=models/Qwen2.5-7B USE_WANDB=true examples/scalable_rl/reproduce.sh [+trainer.val_only=True] [key=value ...]
# Paths are relative to the repository. DRY_RUN=1 checks everything and prints the command instead of running it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
    echo "reproduce.sh: $1" >&2
    exit 2
}

model="${MODEL:-models/Qwen2.5-7B}"
model="${model%/}"
if [[ "$model" != */* && ! -d "$model" ]]; then
    model="models/$model"
fi
nodes="${NNODES:-1}"
node="${RANK:-0}"

# The recipe follows from the name of the model's folder, as the reference's prompts do.
recipe="${RECIPE:-}"
if [ -z "$recipe" ]; then
    name="${model##*/}"
    case "${name,,}" in
        *qwen*32b*) recipe=examples/recipes/qwen2.5-32b.yaml ;;
        *qwen*72b*) recipe=examples/recipes/qwen2.5-72b.yaml ;;
        *qwen3-30b-a3b*) recipe=examples/recipes/qwen3-30b-a3b.yaml ;;
        *qwen*) recipe=examples/recipes/qwen2.5-7b.yaml ;;
        *llama*70b*) recipe=examples/recipes/llama-3.1-70b-instruct.yaml ;;
        *llama*) recipe=examples/recipes/llama-3.1-8b-instruct.yaml ;;
        *gemma*) recipe=examples/recipes/gemma-2-2b-it.yaml ;;
        *smollm2-135m*) recipe=examples/scalable_rl/smollm2-135m.yaml ;;
        *) fail "'$name' tells no recipe (no qwen, llama or gemma in it): name one, \
RECIPE=examples/recipes/qwen2.5-7b.yaml" ;;
    esac
fi
[ -f "$recipe" ] || fail "RECIPE=$recipe: there is no such file"
[ -f "$model/config.json" ] ||
    fail "MODEL=$model is no Hugging Face folder (no config.json there); get one: \
python -m tools.fetch_model --model HUB_ID --out $model"

# Files of the recipe, unless the command line names others. A validation alone reads no training prompts.
for kind in train val; do
    [[ " $*" =~ [\ +]data\.${kind}_files= ]] && continue
    [[ "$kind" = train && " $* " =~ [\ +]trainer\.val_only=[Tt]rue\  ]] && continue
    folder="datasets/${kind/val/test}/"
    while read -r file; do
        [ -f "$file" ] || fail "there is no file $file, which $recipe names: put it there (python -m tools.prepare_data), \
or give data.${kind}_files=[FILE.parquet]"
    done < <(grep -o "${folder}[^],[:space:]]*\.parquet" "$recipe")
done

[[ "$nodes" =~ ^[1-9][0-9]*$ ]] || fail "NNODES=$nodes: expected the number of machines"
[[ "$node" =~ ^[0-9]+$ ]] && [ "$node" -lt "$nodes" ] ||
    fail "RANK=$node: expected this machine's number, 0 to $((nodes - 1)) with NNODES=$nodes"
if [ "$nodes" -gt 1 ] && [ -z "${MASTER_ADDR:-}" ]; then
    fail "NNODES=$nodes needs MASTER_ADDR, the address of machine 0 (and the same MASTER_PORT on all machines)"
fi

gpus="${GPUS_PER_NODE:-}"
if [ -z "$gpus" ] && command -v nvidia-smi >/dev/null; then
    gpus="$(nvidia-smi --list-gpus | grep -c '^GPU ' || true)"
fi
if [ -z "$gpus" ] && [ "$recipe" = examples/scalable_rl/smollm2-135m.yaml ]; then
    gpus=1     # a recipe for a CPU
fi
[[ "$gpus" =~ ^[1-9][0-9]*$ ]] || \
    fail "no GPU found with nvidia-smi: say how many processes this machine runs, GPUS_PER_NODE=8"

launcher=.venv/bin/torchrun
if [ ! -x "$launcher" ]; then
    launcher="$(command -v torchrun)" || fail "there is no torchrun: create the environment with ./setup_env.sh cuda"
fi

command=(
    "$launcher" --nnodes "$nodes" --node-rank "$node" --nproc-per-node "$gpus"
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}"
    pretrain_rlpr.py --config "$recipe" "model.path=$model" "$@"
)
if [ "${DRY_RUN:-}" = 1 ]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi
# Seconds that a stopped run has to finish its step and to save it before torchrun kills it.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"
# Megatron overlaps tensor-parallel communication with computation only when the GPU takes work from one queue.
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
exec "${command[@]}"
