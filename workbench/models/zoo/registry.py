"""Where the embedded models and their adapters lie. Knows names and folders, nothing of what is in them."""

from pathlib import Path
from typing import Final

DEFAULT: Final = "wren-8m"
WEIGHTS: Final = Path(__file__).parent / "weights"
ADAPTERS: Final = Path(__file__).parent / "adapters"


def names() -> list[str]:
    """The models that are there, in alphabetical order."""
    return sorted(folder.parent.name for folder in WEIGHTS.glob("*/config.json"))


def folder(model: str) -> Path:
    """The folder of `zoo/<name>`, or `model` itself where it is a folder, or that of the embedded `<name>`.

    Raises ValueError where there is neither.
    """
    return Path(model) if not model.startswith("zoo/") and Path(model).is_dir() else path(model)


def adapter_folder(adapter: str) -> Path:
    """As `folder`, of an adapter."""
    given = Path(adapter)
    return given if not adapter.startswith("zoo/") and given.is_dir() else adapter_path(adapter)


def path(name: str) -> Path:
    """The folder of the embedded model `<name>` or `zoo/<name>`. Raises ValueError for an unknown one."""
    short = name.removeprefix("zoo/")
    if short not in names():
        raise ValueError(
            f"no embedded model {name!r}: choose one of {', '.join(names()) or '(none is installed)'},"
            " or give a model's folder"
        )
    return WEIGHTS / short


def adapter_names() -> list[str]:
    """The LoRA adapters that are there, in alphabetical order."""
    return sorted(folder.parent.name for folder in ADAPTERS.glob("*/adapter_config.json"))


def adapter_path(name: str) -> Path:
    """The folder of the embedded adapter `<name>` or `zoo/<name>`. Raises ValueError for an unknown one."""
    short = name.removeprefix("zoo/")
    if short not in adapter_names():
        known = ", ".join(adapter_names()) or "(none is installed)"
        raise ValueError(f"no embedded adapter {name!r}: choose one of {known}, or give an adapter's folder")
    return ADAPTERS / short
