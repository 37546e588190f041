"""From what a user calls a model or adapter to its folder: a path, an embedded one, or a hub id.

Knows nothing of what is in the folder.
"""

from __future__ import annotations

import re
from pathlib import Path

_ZOO = "zoo/"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# What a model needs, without the other copies of its weights that some repositories hold.
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_UNWANTED = ["original/*", "consolidated*", "onnx/*"]


def resolve_adapter(path: str) -> Path:
    """The folder of an adapter: as of a model, but that `zoo/<name>` is an embedded adapter.

    Raises:
        OSError: there is nothing there.
        ValueError: `zoo/<name>` names no embedded adapter.
    """
    if path.startswith(_ZOO) and not Path(path).is_dir():
        from workbench.models.zoo import registry

        return Path(registry.adapter_path(path))
    return resolve(path)


def resolve(model: str | Path) -> Path:
    """The folder of `model`.

    Args:
        model: an existing folder, `zoo/<name>` for an embedded model, or a hub id such as "Qwen/Qwen3-0.6B",
            which is downloaded unless the hub's cache has it.

    Raises:
        OSError: there is nothing there; the message says what was looked for and what to do.
        ValueError: `zoo/<name>` names no embedded model.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file: give the folder it is in, with its config.json")
    name = str(model)
    if name.startswith(_ZOO):
        from workbench.models.zoo import registry

        return Path(registry.path(name.removeprefix(_ZOO)))
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise FileNotFoundError(f"no folder at {folder}: check the path")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"{name!r} is neither a folder here nor a model the hub gave ({reason}): check the spelling, log "
            "in if the model is gated, and download it once while online (HF_HUB_OFFLINE=1: cache only)"
        ) from error
