"""The judge's key is sent to the judge and found nowhere else: no log, no file, no message."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest
from judge_server import JudgeServer

from megatron_rlpr.config.loading import resolved, save_resolved
from megatron_rlpr.config.schema import Config
from megatron_rlpr.evaluation.judge import Judge
from megatron_rlpr.evaluation.judge_answers import JudgeAnswers
from megatron_rlpr.evaluation.judge_settings import JudgeSettings, judge_settings
from megatron_rlpr.grading.result import GradeResult, GradeTask
from megatron_rlpr.types import UserError

KEY = "sk-proj-aVerySecretKey"
TASK = GradeTask("Math-500_Avg2", "one half", "0.5", "user\nWhat is half of 1?\nassistant\n")
WRONG = GradeResult(0.0, 1.0, "0.25")


def openai(url: str) -> JudgeSettings:
    settings = judge_settings({"USED_MODEL": "gpt-4.1", "OPENAI_API_KEY": KEY, "OPENAI_API_BASE": url})
    assert settings is not None
    return settings


@pytest.mark.parametrize("status", [200, 401, 500])
def test_a_server_that_repeats_the_key_gets_it_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx2", "httpcore2", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    server = JudgeServer(lambda request, _: (status, f"your key is {KEY} \\boxed{{Y}}"))
    settings = openai(server.url)
    judge = Judge(settings, JudgeAnswers(tmp_path, settings.asked))
    (result,) = judge.judge_many([TASK], [WRONG])
    server.stop()
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert caplog.records, "the client does log"
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == (1 if status == 200 else 0)
    logged = [record.getMessage() + repr(record.args) + str(record.exc_info) for record in caplog.records]
    printed = capfd.readouterr()
    said = [*files, *logged, repr(result), repr(judge.failures), repr(settings), printed.out, printed.err]
    assert [text for text in said if KEY in text] == []
    assert judge.failures == ({} if status == 200 else {f"status {status}": 1})


def test_a_failed_connection_does_not_tell(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    judge = Judge(openai("http://127.0.0.1:9/v1"))
    judge.judge_many([TASK], [WRONG])
    assert [record for record in caplog.records if KEY in record.getMessage()] == []
    assert judge.failures == {"ConnectError": 1}


@pytest.mark.parametrize("base", [KEY, f"https://me:{KEY}@host/v1", f"https://host/v1?key={KEY}", f"https://h:{KEY}"])
@pytest.mark.parametrize("variable", ["OPENAI_API_BASE", "CLIENT_IP"])
def test_a_key_in_the_wrong_place_is_refused_without_being_shown(base: str, variable: str) -> None:
    model = {"USED_MODEL": "gpt-4.1", "OPENAI_API_KEY": "key"} if variable == "OPENAI_API_BASE" else {}
    with pytest.raises(UserError, match=variable) as refused:
        judge_settings({variable: base, **model})
    assert KEY not in str(refused.value)
    assert KEY.encode() not in pickle.dumps(refused.value.args), "what other ranks are told"


def test_no_saved_configuration_holds_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USED_MODEL", "gpt-4.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    config = Config()
    assert judge_settings(evaluation=config.evaluation) is not None
    save_resolved(config, tmp_path / "config.yaml")
    assert KEY not in (tmp_path / "config.yaml").read_text() + repr(resolved(config))
