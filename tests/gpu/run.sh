#!/usr/bin/env bash
# All checks on a machine with a GPU, as one command that needs no decision and ends within 8 minutes:
#
#   bash tests/gpu/run.sh OUT [numbers|times]
#
# numbers: only what is checked, on both kinds of layers at once; times: only what is measured, one after the other.
# PARTS (a regular expression of their names) and TESTS (as of pytest's -k) choose among what is run.
# Prints one table (verdict, value, bound, check) and leaves it in OUT/table.json, with the log of every part beside it.
# Takes from build/gpu what is there (README.md says what), else what is installed. Without Transformer Engine the parts
# that need it are left out.
set -u
limit=470 # seconds after which nothing more is measured
[ $# = 1 ] || [ $# = 2 ] || { echo "usage: bash tests/gpu/run.sh OUT [numbers|times]" >&2; exit 2; }
wanted="${2:-both}"
mkdir -p "$1" && out="$(cd "$1" && pwd)"
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
export RLPR_GPU_RECORDS="$out/records.jsonl" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=4 NVIDIA_TF32_OVERRIDE=0 TORCHINDUCTOR_CACHE_DIR="$site/inductor" PYTHONDONTWRITEBYTECODE=1
: >"$RLPR_GPU_RECORDS"

unpack() { mkdir -p "$site/$1" && xz -dc "build/gpu/$1.tar.xz" | tar -C "$site/$1" -xf -; }
own="$PWD:$PWD/tests/gpu"
[ -f build/gpu/base.tar.xz ] && unpack base && own="$own:$site/base"
if [ -f build/gpu/transformer_engine.tar.xz ]; then unpack transformer_engine; fi
export PYTHONPATH="$own"
# Transformer Engine's library finds CUDA's here, where PyTorch brings them.
brought="$("$python" -c 'import glob, nvidia; print(":".join(f for p in nvidia.__path__ for f in glob.glob(p + "/*/lib")))')"
export LD_LIBRARY_PATH="$brought:${LD_LIBRARY_PATH:-}"
engine=""
for candidate in "$own" "$own:$site/transformer_engine"; do
    if PYTHONPATH="$candidate" "$python" -c "import megatron_rlpr, transformer_engine.pytorch" >"$out/import.log" 2>&1; then
        engine="$candidate"
        break
    fi
done
if [ -z "$engine" ] && [ -f build/gpu/transformer_engine.tar.xz ]; then
    echo "Transformer Engine does not load:"
    tail -n 3 "$out/import.log"
fi

part() { # NAME SECONDS PYTHONPATH COMMAND...
    local name="$1" seconds="$2" path="$3" begun=$SECONDS left=$((limit - SECONDS))
    shift 3
    [[ "$name" =~ ${PARTS:-.} ]] || return
    [ $left -gt 0 ] || { echo "part $name: left out, since $limit s have passed"; return; }
    [ $left -ge $seconds ] || seconds=$left
    RLPR_GPU_PART="$name" PYTHONPATH="$path" timeout -k 5 "$seconds" "$@" >"$out/$name.log" 2>&1
    echo "part $name: exit status $? after $((SECONDS - begun)) s"
}

model="$site/model"
if [ "$wanted" != times ]; then
    tests=("$python" -m pytest -p no:cacheprovider -k "${TESTS:-test}")
    without_layers=() with_layers=()
    for file in tests/gpu/test_gpu_*.py; do
        case "$file" in
            *_attention.py | *_head.py | *_weight_transports.py) without_layers+=("$file") ;;
            *) with_layers+=("$file") ;;
        esac
    done
    part without-layers 220 "$own" "${tests[@]}" "${without_layers[@]}" &
    part own-layers 220 "$own" "${tests[@]}" "${with_layers[@]}" &
    if [ -n "$engine" ]; then part transformer-engine 220 "$engine" "${tests[@]}" "${with_layers[@]}" & fi
fi
if [ "$wanted" != numbers ]; then
    part model 100 "$own" "$python" tests/gpu/speed.py "$model" model &
    wait
    work="--groups 8 --n 8 --prompt 256 --response 512 --reference 8 --max-tokens 16384 --chunk-rows 1024"
    part attention-speed 75 "$own" "$python" tests/gpu/attention_speed.py
    part own-layers-score 40 "$own" "$python" tests/gpu/speed.py "$model" score $work
    part own-layers-update 40 "$own" "$python" tests/gpu/speed.py "$model" update $work --repetitions 3
    if [ -n "$engine" ]; then
        part te-score 40 "$engine" "$python" tests/gpu/speed.py "$model" score $work
        part te-update 40 "$engine" "$python" tests/gpu/speed.py "$model" update $work --repetitions 3
        part te-score-fp8 40 "$engine" "$python" tests/gpu/speed.py "$model" score $work --fp8 hybrid
        part te-update-fp8 40 "$engine" "$python" tests/gpu/speed.py "$model" update $work --repetitions 3 --fp8 hybrid
    fi
fi
wait
"$python" tests/gpu/table.py "$RLPR_GPU_RECORDS" "$out/table.json"
