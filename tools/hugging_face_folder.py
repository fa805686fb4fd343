"""Model folders in the Hugging Face layout: what makes one usable, and two ways to get one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from megatron_rlpr.system.sealed_folder import empty
from megatron_rlpr.types import UserError

# Files at the top of a repository that a run reads; weights only as safetensors, which cannot carry code.
WANTED = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer*",
    "*.model",
    "merges.txt",
    "vocab.txt",
    "LICENSE*",
    "README.md",
)
INDEX = "model.safetensors.index.json"


def check(folder: Path) -> None:
    """Raise UserError unless the folder has a readable config, a fast tokenizer and complete safetensors weights."""
    config = _json(folder, "config.json")
    if not config.get("architectures"):
        raise UserError(
            f"{folder}/config.json: names no architectures, expected one such as LlamaForCausalLM; use a causal "
            "language model"
        )
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder}: tokenizer.json is missing; save the model's fast tokenizer there (tokenizer.save_pretrained)"
        )
    for shard in weight_files(folder):
        _check_readable(shard)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights, all of them present; raises UserError when there are none or one is
    missing."""
    if (folder / INDEX).is_file():
        weight_map = _json(folder, INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(
                f"{folder}/{INDEX}: holds no weight_map, expected tensor names with their files; get the file again"
            )
        shards = [folder / name for name in sorted(set(weight_map.values()))]
        for shard in shards:
            if not shard.is_file():
                raise UserError(f"{folder}: {shard.name} is missing, {INDEX} names it; get the file again")
        return shards
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickled = next((path.name for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pt", ".pth")), None)
        instead = (
            f"only {pickled}, which is never loaded because such files can run code" if pickled else "no weights at all"
        )
        raise UserError(f"{folder}: holds {instead}; expected *.safetensors, as save_pretrained writes them")
    return shards


def link_local(source: Path, staging: Path) -> None:
    """Copy a folder's small files into staging and link its weights, after checking it."""
    check(source)
    empty(staging)
    weights = weight_files(source)
    for path in sorted(source.iterdir()):
        if path in weights:
            (staging / path.name).symlink_to(path.resolve())
        elif path.is_file() and path.suffix != ".safetensors" and any(path.match(pattern) for pattern in WANTED):
            shutil.copyfile(path, staging / path.name)


def download(hub_id: str, staging: Path) -> None:
    """Download a repository's top-level model files into staging; what an interrupted download left there is
    continued."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        snapshot_download(hub_id, local_dir=staging, allow_patterns=list(WANTED), ignore_patterns=["*/*"])
    except GatedRepoError:
        raise UserError(
            f"{hub_id}: the model's terms must be accepted on its hub page first; then log in (hf auth login)"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"{hub_id}: no such folder here and no such model on the hub; check the spelling") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"{hub_id}: nothing came from the model hub ({_first_line(error)}); run again, or give a local folder"
        ) from error
    shutil.rmtree(staging / ".cache", ignore_errors=True)


def _check_readable(shard: Path) -> None:
    """Open a safetensors file: its header must parse and account for exactly the file's bytes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="numpy") as file:
            if not file.keys():
                raise UserError(f"{shard}: holds no tensors; get the file again")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{shard}: not a complete safetensors file ({_first_line(error)}); get the file again"
        ) from error


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: {name} is missing; give a Hugging Face model folder") from None
    except ValueError as error:
        raise UserError(f"{folder}/{name}: is not JSON ({_first_line(error)}); get the file again") from None
    if not isinstance(content, dict):
        raise UserError(f"{folder}/{name}: expected a JSON object; get the file again")
    return content


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
