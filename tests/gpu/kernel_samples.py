"""What Transformer Engine computes from fixed inputs: on a CPU with the emulated kernels, on a GPU with its own.

    python tests/gpu/kernel_samples.py OUT.safetensors      (with the emulated kernels)

`tests/gpu/test_gpu_emulation.py` computes the same on a GPU and compares: this is what ties the emulation to the truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

ROWS, COLUMNS, OUTPUTS = 256, 384, 128


def inputs() -> dict[str, Tensor]:
    """bf16 tensors with rows and columns of different magnitudes, drawn on the CPU: the same everywhere."""
    dice = torch.Generator().manual_seed(3)

    def draw(rows: int, columns: int, spread: float) -> Tensor:
        by_row, by_column = (torch.randn(s, generator=dice) for s in ((rows, 1), (1, columns)))
        noise = torch.randn(rows, columns, generator=dice)
        return (noise * torch.exp(spread * by_row) * torch.exp(spread * by_column)).bfloat16()

    return {
        "x": draw(ROWS, COLUMNS, 1.0),
        "weight": 0.05 * draw(OUTPUTS, COLUMNS, 0.5),
        "gradient": 0.01 * draw(ROWS, OUTPUTS, 1.0),
        "gain": 1 + 0.1 * draw(1, COLUMNS, 0.0)[0],
    }


def samples(where: str) -> dict[str, Tensor]:
    """By name: bytes and scales of every quantizer; output and gradients of a linear layer and of one behind a norm in
    bf16 and in every recipe, for three steps (the delayed recipe's scales move from the first on). On the CPU."""
    import transformer_engine.pytorch as te
    import transformer_engine_torch as tex
    from transformer_engine.common import recipe as te_recipes

    given = {name: tensor.to(where) for name, tensor in inputs().items()}
    kinds = {"e4m3": tex.DType.kFloat8E4M3, "e5m2": tex.DType.kFloat8E5M2}
    found: dict[str, Tensor] = {}
    for kind, number in kinds.items():
        scale, amax = torch.tensor([0.5], device=where), torch.tensor([3.0], device=where)
        delayed = te.Float8Quantizer(scale, amax, number)(given["x"])
        tensorwise = te.Float8CurrentScalingQuantizer(number, device=torch.device(where))(given["x"])
        found |= {f"delayed {kind} bytes": delayed._data, f"delayed {kind} amax": amax}
        found |= {f"tensorwise {kind} bytes": tensorwise._data, f"tensorwise {kind} scale": tensorwise._scale_inv}
        for dimensions in (1, 2):
            quantizer = te.Float8BlockQuantizer(number, rowwise=True, columnwise=True, block_scaling_dim=dimensions)
            blocks, name = quantizer(given["x"]), f"blockwise {dimensions}D {kind}"
            found |= {f"{name} bytes": blocks._rowwise_data, f"{name} column bytes": blocks._columnwise_data}
            # What pads scales to a multiple of four is not written.
            down, across = -(-ROWS // 128), -(-COLUMNS // 128)
            of_rows, of_columns = (
                ((across, ROWS), (down, COLUMNS)) if dimensions == 1 else ((down, across), (across, down))
            )
            for what, scales, (m, n) in (
                ("scale", blocks._rowwise_scale_inv, of_rows),
                ("column scale", blocks._columnwise_scale_inv, of_columns),
            ):
                found[f"{name} {what}"] = scales[:m, :n]
    recipes = {
        "bf16": None,
        "delayed": te_recipes.DelayedScaling(),
        "tensorwise": te_recipes.Float8CurrentScaling(),
        "blockwise": te_recipes.Float8BlockScaling(),
    }
    for name, recipe in recipes.items():
        options = {"bias": False, "params_dtype": torch.bfloat16, "device": where}
        layers = {
            "linear": te.Linear(COLUMNS, OUTPUTS, **options),
            "norm + linear": te.LayerNormLinear(COLUMNS, OUTPUTS, normalization="RMSNorm", eps=1e-5, **options),
        }
        for kind, layer in layers.items():
            with torch.no_grad():
                layer.weight.copy_(given["weight"])
                if kind != "linear":
                    layer.layer_norm_weight.copy_(given["gain"])
            for step in range(3):
                x = given["x"].clone().requires_grad_()
                layer.zero_grad(set_to_none=True)
                with te.autocast(enabled=recipe is not None, recipe=recipe):
                    y = layer(x, is_first_microbatch=True)
                y.backward(given["gradient"])
                at = f"{name} {kind} step {step}"
                found |= {f"{at} output": y.detach(), f"{at} gradient of x": x.grad}
                found |= {f"{at} gradient of {n}": p.grad for n, p in layer.named_parameters()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "transformer_engine" / "kernels"))
    import te_on_cpu
    from safetensors.torch import save_file

    te_on_cpu.install()
    te_on_cpu.pretend_gpu()
    save_file(samples("cpu"), sys.argv[1])
