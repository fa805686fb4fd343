"""setup_server.sh starts vLLM's own server in the way the judge asks for it, or says in one line why not."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from megatron_rlpr.evaluation.judge_settings import judge_settings

SCRIPT = Path(__file__).parents[3] / "setup_server.sh"
SCRIPT_VARIABLES = ("GPU_IDS", "HOST", "PORT", "MAX_MODEL_LEN", "MAX_TOKENS", "TENSOR_PARALLEL_SIZE", "DRY_RUN")
GPUS = {"GPU_IDS": "0,1,2,3"}


@pytest.fixture
def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in SCRIPT_VARIABLES}
    return subprocess.run(
        [str(SCRIPT), *arguments], env=inherited | {"DRY_RUN": "1"} | environment, capture_output=True, text=True
    )


def refusal(*arguments: str, **environment: str) -> str:
    done = start(*arguments, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("setup_server.sh: ")
    assert done.stderr.count("\n") == 1, "one line"
    return done.stderr


def test_the_server_answers_to_the_name_the_judge_asks_for(free_port: str) -> None:
    done = start(PORT=free_port, **GPUS)
    assert done.returncode == 0, done.stderr
    env, devices, program, serve, *options = shlex.split(done.stdout)
    assert (env, devices, serve) == ("env", "CUDA_VISIBLE_DEVICES=0,1,2,3", "serve")
    assert program.endswith("vllm")
    asked = judge_settings({"USED_MODEL": "Qwen2.5-72B-Instruct"})
    assert asked is not None
    assert options == [
        *("Qwen/Qwen2.5-72B-Instruct", "--served-model-name", asked.model, "--host", "127.0.0.1", "--port", free_port),
        *("--tensor-parallel-size", "4", "--max-model-len", "32768"),
    ]


def test_another_model_on_other_gpus_with_further_options(tmp_path: Path, free_port: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = start(str(tmp_path), "--enforce-eager", GPU_IDS="6,7", HOST="0.0.0.0", PORT=free_port, MAX_MODEL_LEN="16384")
    _, devices, _, _, model, *options = shlex.split(done.stdout)
    assert (devices, model) == ("CUDA_VISIBLE_DEVICES=6,7", str(tmp_path))
    assert options[-5:] == ["--tensor-parallel-size", "2", "--max-model-len", "16384", "--enforce-eager"]
    assert options[2:6] == ["--host", "0.0.0.0", "--port", free_port]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["models/no-such-model"], {}, "models/no-such-model is neither a Hugging Face folder"),
        (["./typo"], {}, "./typo is neither a Hugging Face folder"),
        ([], {"GPU_IDS": "0 1"}, "GPU_IDS=0 1: expected numbers of GPUs"),
        ([], {"PORT": "http"}, "PORT=http: expected a port"),
        ([], {"PORT": "65536"}, "PORT=65536: expected a port"),
        ([], {"MAX_MODEL_LEN": "8192"}, "MAX_MODEL_LEN=8192: a reply alone may take 12288 tokens"),
        ([], {"MAX_TOKENS": "many"}, "MAX_TOKENS=many: expected a number"),
        ([], {"HOST": "here; there"}, "HOST=here; there: expected a name or an address"),
        ([], {"TENSOR_PARALLEL_SIZE": "8"}, "TENSOR_PARALLEL_SIZE=8: expected 1 to 4, the number of GPUs"),
    ],
)
def test_a_mistake_is_one_line(free_port: str, arguments: list[str], environment: dict[str, str], message: str) -> None:
    assert message in refusal(*arguments, **{"PORT": free_port, **GPUS, **environment})


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"something listens on port {port} already" in refusal(PORT=port, **GPUS)


def test_fewer_gpus_than_there_are_may_share_the_model(free_port: str) -> None:
    options = shlex.split(start(PORT=free_port, TENSOR_PARALLEL_SIZE="2", **GPUS).stdout)
    assert options[options.index("--tensor-parallel-size") + 1] == "2"


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_without_a_gpu_the_small_model_is_served_in_float32(tmp_path: Path, free_port: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = start(str(tmp_path), PORT=free_port)
    assert done.returncode == 0, done.stderr
    options = shlex.split(done.stdout)
    assert "CUDA_VISIBLE_DEVICES" not in done.stdout
    assert options[options.index("--dtype") + 1] == "float32"
    assert options[options.index("--max-model-len") + 1] == "4096"
    assert options[options.index("--tensor-parallel-size") + 1] == "1"


def test_the_health_check_says_whether_a_judge_answers(free_port: str) -> None:
    nobody = start("--health", PORT=free_port)
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr == f"setup_server.sh: no judge answers on http://127.0.0.1:{free_port}\n"
