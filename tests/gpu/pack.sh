#!/usr/bin/env bash
# Fills build/gpu with what `run.sh` needs on a machine with a GPU and no network; see README.md.
#
#   bash tests/gpu/pack.sh [TORCH_BINDING.so]
#
# base.tar.xz: Megatron-Core and what it imports that such a machine may lack. transformer_engine.tar.xz: Transformer
# Engine's Python, its library with machine code for one architecture (ARCHITECTURE=90), and its torch binding, which
# must have been compiled for the Python and the torch of that machine (PYTHON_VERSION=3.12); left out without one.
# emulated.safetensors: what the emulated kernels compute, for comparison.
set -euo pipefail
cd "$(dirname "$0")/../.."
binding="${1:-}" architecture="${ARCHITECTURE:-90}" version="${PYTHON_VERSION:-3.12}"
out=build/gpu work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

fetch() { # FOLDER PACKAGE...
    local folder="$1"
    shift
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --upgrade \
        --only-binary=:all: --python-version "$version" --implementation cp --target "$folder" \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 "$@"
}

pins=requirements/cuda-constraints.txt
fetch "$work/base" -c "$pins" megatron-core pydantic pydantic-core annotated-types typing-inspection
tar -C "$work/base" -cf - . | xz -T0 -6 >"$out/base.tar.xz"
if [ -n "$binding" ]; then
    fetch "$work/te" -c "$pins" transformer-engine transformer-engine-cu13 nvdlfw-inspect importlib-metadata zipp
    libraries="$work/te/transformer_engine/wheel_lib"
    .venv/bin/python tests/gpu/thin_library.py "$libraries/libtransformer_engine.so" "$work/thin.so" "$architecture"
    mv "$work/thin.so" "$libraries/libtransformer_engine.so"
    rm -rf "$libraries"/*nccl_ep* "$work/te/transformer_engine/jax"
    strip --strip-unneeded -o "$libraries/transformer_engine_torch.so" "$binding"
    tar -C "$work/te" -cf - . | xz -T0 -3 >"$out/transformer_engine.tar.xz"
    PYTHONPATH=. .venv/bin/python tests/gpu/kernel_samples.py "$out/emulated.safetensors"
else
    rm -f "$out/transformer_engine.tar.xz"
fi
ls -l "$out"
