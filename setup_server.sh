#!/usr/bin/env bash
# Start the judge of the validation: vLLM's own OpenAI-compatible server, in the foreground, until Ctrl-C.
#   GPU_IDS=0,1,2,3 PORT=8001 ./setup_server.sh [MODEL_FOLDER_OR_HUB_ID] [more options of vllm serve ...]
# Then validate or train with CLIENT_IP=http://127.0.0.1:8001. HOST=0.0.0.0 serves other machines too (there is no
# password).
# MAX_MODEL_LEN (32768) must hold a question, the judged response and 12,288 tokens of reply. DRY_RUN=1 prints the
# command instead. Not run yet with the default model, which needs 4 GPUs of 80 GB: the printed command was run with a
# 135M model on CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
    echo "setup_server.sh: $1" >&2
    exit 2
}

model=Qwen/Qwen2.5-72B-Instruct
if [ $# -gt 0 ] && [[ "$1" != -* ]]; then
    model="$1"
    shift
fi
gpus="${GPU_IDS:-0,1,2,3}"
host="${HOST:-127.0.0.1}"
port="${PORT:-8001}"
length="${MAX_MODEL_LEN:-32768}"

# A hub id is owner/name; anything else that is not here is a folder with a typing error in it.
[ -f "$model/config.json" ] || [[ "$model" =~ ^[A-Za-z0-9][A-Za-z0-9_-]*/[A-Za-z0-9._-]+$ && "$model" != models/* ]] ||
    fail "$model is neither a Hugging Face folder (no config.json there) nor a hub id (owner/name)"
[[ "$gpus" =~ ^[0-9]+(,[0-9]+)*$ ]] ||
    fail "GPU_IDS=$gpus: expected numbers of GPUs with commas between them, such as 0,1,2,3"
[[ "$port" =~ ^[0-9]+$ ]] && [ "$port" -ge 1 ] && [ "$port" -le 65535 ] ||
    fail "PORT=$port: expected a port, 1 to 65535"
[[ "$length" =~ ^[0-9]+$ ]] && [ "$length" -gt 12288 ] ||
    fail "MAX_MODEL_LEN=$length: a reply alone may take 12288 tokens, allow more"
if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    fail "something listens on port $port already: stop it, or choose another PORT (and CLIENT_IP)"
fi

server=.venv/bin/vllm
if [ ! -x "$server" ]; then
    server="$(command -v vllm)" || fail "there is no vllm: create the environment with ./setup_env.sh cuda"
fi

IFS=, read -ra ids <<<"$gpus"
# The judge's requests ask for the model "qwen", whichever it is.
command=(
    "$server" serve "$model" --served-model-name qwen --host "$host" --port "$port"
    --tensor-parallel-size "${#ids[@]}" --max-model-len "$length" "$@"
)
if [ "${DRY_RUN:-}" = 1 ]; then
    printf '%q ' env "CUDA_VISIBLE_DEVICES=$gpus" "${command[@]}"
    echo
    exit 0
fi

command -v nvidia-smi >/dev/null ||
    fail "no GPU here (no nvidia-smi); CLIENT_IP may name any OpenAI-compatible server instead"
for id in "${ids[@]}"; do
    nvidia-smi --id="$id" >/dev/null 2>&1 || fail "GPU_IDS=$gpus: nvidia-smi knows no GPU $id on this machine"
done
echo "setup_server.sh: judge on http://$host:$port with $model on GPUs $gpus"
exec env "CUDA_VISIBLE_DEVICES=$gpus" "${command[@]}"
