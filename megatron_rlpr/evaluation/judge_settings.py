"""Which judge the reference's environment variables ask for, and how patiently it is asked (spec section 6.5)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from megatron_rlpr.config.schema import EvaluationConfig
from megatron_rlpr.types import UserError

OPENAI_MODELS = ("gpt-4o", "gpt-4.1")
RULES_ONLY = "no_api"
NO_KEY = "none"
"""What a server of one's own gets in place of a key."""
_SERVER_MODEL = "qwen"
_PATIENCE = EvaluationConfig()
_DEFAULT_SERVER = "http://127.0.0.1:8001"
_OPENAI_SERVER = "https://api.openai.com/v1"


@dataclass(frozen=True)
class JudgeSettings:
    """Which judge is asked, and how patiently.

    model: what requests ask for; name: what its answers are kept under, "" for model. base_url: the OpenAI-compatible
    interface. api_key is a secret: it is never printed. every_response: ask about responses the rules find right too.
    sampling: more fields of a request; most_tokens: the longest reply. timeout_s limits one request from connecting to
    the last byte; retries repeat it; parallel requests are open at once; time_limit_s is for one whole validation.
    """

    model: str
    base_url: str
    api_key: str = field(repr=False)
    every_response: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    most_tokens: int = _PATIENCE.judge_max_tokens
    timeout_s: float = _PATIENCE.judge_timeout_s
    time_limit_s: float = _PATIENCE.judge_time_limit_s
    retries: int = 4
    parallel: int = _PATIENCE.judge_parallel

    @property
    def asked(self) -> dict[str, Any]:
        """What an answer depends on besides the question."""
        return {"model": self.name or self.model, "max_tokens": self.most_tokens, **self.sampling}


def judge_settings(
    environment: Mapping[str, str] = os.environ, evaluation: EvaluationConfig = _PATIENCE
) -> JudgeSettings | None:
    """The judge that the reference's environment variables ask for; None where the rules alone decide.

    USED_MODEL=no_api: rules only. USED_MODEL=gpt-4o or gpt-4.1: OpenAI, with OPENAI_API_KEY and perhaps
    OPENAI_API_BASE, for every response. Any other USED_MODEL, or a CLIENT_IP: the server at CLIENT_IP (default
    http://127.0.0.1:8001), for responses found wrong.
    Neither of the two: rules only (the reference would ask a server that nobody started). Raises UserError for a
    missing key or a bad URL; it shows neither.
    """
    model = environment.get("USED_MODEL", "")
    server = environment.get("CLIENT_IP", "")
    if model == RULES_ONLY or not (model or server):
        return None
    patience: dict[str, Any] = {
        "most_tokens": evaluation.judge_max_tokens,
        "timeout_s": float(evaluation.judge_timeout_s),
        "time_limit_s": float(evaluation.judge_time_limit_s),
        "parallel": evaluation.judge_parallel,
    }
    if model in OPENAI_MODELS:
        key = environment.get("OPENAI_API_KEY", "")
        if not key:
            raise UserError(
                f"USED_MODEL={model} asks OpenAI to judge: set OPENAI_API_KEY, or USED_MODEL=no_api for the rules alone"
            )
        if not (key.isascii() and key.isprintable() and key == key.strip()):
            raise UserError(
                "OPENAI_API_KEY holds characters that no key has, a line break or a space perhaps; set it anew"
            )
        server = _address("OPENAI_API_BASE", environment.get("OPENAI_API_BASE") or _OPENAI_SERVER, _OPENAI_SERVER)
        return JudgeSettings(model, server, key, True, {"temperature": 0.1}, **patience)
    server = _address("CLIENT_IP", server or _DEFAULT_SERVER, _DEFAULT_SERVER)
    sampling = {"temperature": 0.0, "top_p": 0.9, "top_k": 50}
    return JudgeSettings(
        _SERVER_MODEL, server.rstrip("/") + "/v1", NO_KEY, False, sampling, model or _SERVER_MODEL, **patience
    )


def _address(variable: str, server: str, example: str) -> str:
    """The server's address; raises UserError that names the variable for anything but http(s)://host[:port][/path].

    What it holds is not shown: a key may have come into the wrong variable.
    """
    try:
        parts = urlsplit(server)
        whole = bool(parts.hostname) and parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        whole = False
    if not (whole and server.isascii() and server.isprintable() and " " not in server):
        raise UserError(f"{variable} is no address of a judge; expected something like {example}")
    if parts.username is not None or parts.query or parts.fragment:
        raise UserError(
            f"{variable} holds more than an address (a name and password, or something after ? or #): expected "
            f"something like {example}; a key goes into OPENAI_API_KEY"
        )
    return server
