"""setup_server.sh serves a judge with vLLM's own server, over HTTP, and a validation's judge talks to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_runs import Workplace

from megatron_rlpr.config.schema import EvaluationConfig
from megatron_rlpr.evaluation.judge import Judge
from megatron_rlpr.evaluation.judge_answers import JudgeAnswers
from megatron_rlpr.evaluation.judge_settings import judge_settings
from megatron_rlpr.grading.result import GradeResult, GradeTask

pytestmark = pytest.mark.e2e

SCRIPT = Path(__file__).parents[2] / "setup_server.sh"
LONGEST_START_S = 600


@pytest.fixture(scope="module")
def judge_port(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The port of a judge that answers: the small model, in float32 on the CPU."""
    folder = tmp_path_factory.mktemp("judge")
    model = folder / "model"
    shutil.copytree(workplace.folder / "model", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    vllm = os.fspath(Path(sys.executable).parent)
    environment = {**os.environ, "PORT": port, "MAX_TOKENS": "16", "PATH": f"{vllm}:{os.environ['PATH']}"}
    log = folder / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [SCRIPT, model], env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        begun = time.monotonic()
        while "the judge answers" not in log.read_text():
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() - begun < LONGEST_START_S, log.read_text()[-3000:]
            time.sleep(0.5)
        health = subprocess.run([SCRIPT, "--health"], env=environment, capture_output=True, text=True)
        assert (health.returncode, health.stderr) == (0, "")
        yield port
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="with a GPU the script serves the judge there")
def test_a_real_server_is_asked_once_and_its_nonsense_changes_no_verdict(judge_port: str, tmp_path: Path) -> None:
    patience = EvaluationConfig(judge_max_tokens=16)
    settings = judge_settings({"CLIENT_IP": f"http://127.0.0.1:{judge_port}"}, patience)
    assert settings is not None
    question = "user\nWhat is half of 1?\nassistant\n"
    tasks = [GradeTask("Math-500_Avg2", f"It is {n}.", "0.5", question) for n in range(3)]
    rules = [GradeResult(0.0, 1.0, str(n)) for n in range(3)]
    for asked, remembered in ((3, 0), (0, 3)):
        judge = Judge(settings, JudgeAnswers(tmp_path, settings.asked))
        results = judge.judge_many(tasks, rules)
        assert judge.failures == {}
        assert (judge.asked, judge.remembered) == (asked, remembered)
        assert [result.accuracy for result in results] == [0.0] * 3, "the small model boxes no Y in sixteen tokens"
        assert all(result.judge_reply for result in results)
