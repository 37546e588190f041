"""Where the embedded models lie. Knows their names and folders, and nothing of what is in them."""

from pathlib import Path
from typing import Final

DEFAULT: Final = "wren-8m"
WEIGHTS: Final = Path(__file__).parent / "weights"


def names() -> list[str]:
    """The models that are there, in alphabetical order."""
    return sorted(folder.parent.name for folder in WEIGHTS.glob("*/config.json"))


def folder(model: str) -> Path:
    """The folder of `zoo/<name>`, or `model` itself where it is a folder, or that of the embedded `<name>`.

    Raises ValueError where there is neither.
    """
    return Path(model) if not model.startswith("zoo/") and Path(model).is_dir() else path(model)


def path(name: str) -> Path:
    """The folder of the embedded model `<name>` or `zoo/<name>`. Raises ValueError for an unknown one."""
    short = name.removeprefix("zoo/")
    if short not in names():
        raise ValueError(
            f"no embedded model {name!r}: choose one of {', '.join(names()) or '(none is installed)'},"
            " or give a model's folder"
        )
    return WEIGHTS / short
