"""The policy on CUDA: Transformer Engine layers, the same trees, the same numbers as transformers.

Run on a machine with a GPU: python -m pytest tests/gpu. Elsewhere every test is skipped with that reason.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs CUDA and Transformer Engine: this machine has no GPU"
    ),
]

VOCAB = 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny_llama")
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def make_policy(folder: Path, **options: object):
    from megatron_rlpr.actor import parallel
    from megatron_rlpr.actor.policy import MegatronPolicy
    from megatron_rlpr.config.schema import ActorConfig
    from megatron_rlpr.weights.architectures import model_shape
    from megatron_rlpr.weights.hf_folder import HfFolder
    from megatron_rlpr.weights.load_hf import load_hf_weights

    actor = ActorConfig(**{"dtype": "float32", "max_tokens_per_micro_batch": 512, **options})  # type: ignore[arg-type]
    layout = parallel.initialize(actor, seed=1)
    shape = model_shape(HfFolder(folder).config())
    policy = MegatronPolicy(shape, actor, layout, temperature=1.0)
    load_hf_weights(policy.chunks, shape, folder)
    policy.weights_changed()
    return policy


@pytest.fixture(autouse=True)
def fresh_groups():
    yield
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wanted_requests() -> list:
    from megatron_rlpr.types import ScoreRequest

    rng = np.random.default_rng(0)
    prompt = rng.integers(0, VOCAB, 40).tolist()
    return [ScoreRequest(tuple(prompt + rng.integers(0, VOCAB, 20 + i).tolist()), 40, 60 + i) for i in range(6)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-3), ("bfloat16", 0.1)])
def test_scores_equal_transformers(folder: Path, dtype: str, tolerance: float) -> None:
    from transformers import LlamaForCausalLM

    requests = wanted_requests()
    scores = make_policy(folder, dtype=dtype).score(requests)
    reference = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).cuda()
    for request, score in zip(requests, scores, strict=True):
        ids = torch.tensor([request.token_ids], device="cuda")
        with torch.no_grad():
            log_probs = reference(ids).logits[0].float().log_softmax(-1)
        rows = torch.arange(request.start - 1, request.stop - 1, device="cuda")
        expected = log_probs[rows, ids[0, request.start : request.stop]].cpu().numpy()
        assert np.abs(score.log_probs - expected).max() < tolerance


@pytest.mark.parametrize("fp8", ["", "hybrid"])
def test_an_update_lowers_the_loss_of_rewarded_tokens(folder: Path, fp8: str) -> None:
    from megatron_rlpr.actor.policy_gradient import LossTerms
    from megatron_rlpr.types import TrainSequence

    if fp8 and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("FP8 needs compute capability 8.9 or newer")
    policy = make_policy(folder, dtype="bfloat16", fp8=fp8)
    requests = wanted_requests()
    before = policy.score(requests)
    sequences = [
        TrainSequence(r.token_ids, r.start, r.stop, s.log_probs, np.ones(r.stop - r.start, dtype=np.float32))
        for r, s in zip(requests, before, strict=True)
    ]
    terms = LossTerms(0.2, 0.27, 0.0, 0.0, 0.0, "low_var_kl")
    weight = 1 / sum(r.stop - r.start for r in requests)
    result = policy.update(sequences, [weight] * len(sequences), terms, lr=1e-3)
    after = policy.score(requests)
    assert np.isfinite(result.grad_norm)
    assert np.mean(np.concatenate([s.log_probs for s in after])) > np.mean(
        np.concatenate([s.log_probs for s in before])
    )


@pytest.mark.parametrize("window", [0, 1, 70])
def test_flash_attention_equals_the_plain_blocks(window: int) -> None:
    """Forward and backward in bf16, a prompt with three branches, grouped queries; the blocks are tested on every
    machine."""
    from megatron_rlpr.actor.attention.block_attention import BlockBackend
    from megatron_rlpr.actor.attention.flash_attention import FlashBackend
    from megatron_rlpr.actor.attention.rotary import Rotary
    from megatron_rlpr.packing import Nodes

    nodes = Nodes(
        *(
            np.array(values, dtype=np.int64)
            for values in ([0, 300, 500, 620], [300, 500, 620, 700], [-1, 0, 0, 2], [700, 500, 700, 700])
        )
    )
    where = torch.device("cuda")
    generator = torch.Generator(device=where).manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=where, dtype=torch.bfloat16, requires_grad=True)

    inputs = leaf(700, 8, 64), leaf(700, 4, 64), leaf(700, 4, 64)
    cotangent = leaf(700, 8, 64).detach()
    rotary = Rotary.at(torch.arange(700, device=where), 1.0 / 1e4 ** (torch.arange(32) / 32), torch.bfloat16)
    fast, plain = (
        backend.attend(*inputs, backend.lay_out(nodes, torch.bfloat16, where, window), rotary, 1 / 8, None)
        for backend in (FlashBackend(), BlockBackend())
    )
    pairs = [(fast, plain)]
    pairs += zip(*(torch.autograd.grad((out * cotangent).sum(), inputs) for out in (fast, plain)), strict=True)
    for found, expected in pairs:
        assert (found.float() - expected.float()).norm() <= 0.02 * expected.float().norm()
