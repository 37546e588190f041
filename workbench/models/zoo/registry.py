"""Where the embedded models lie. Knows their names and folders, and nothing of what is in them."""

from pathlib import Path
from typing import Final

DEFAULT: Final = "wren-8m"
WEIGHTS: Final = Path(__file__).parent / "weights"


def names() -> list[str]:
    """The models that are there, in alphabetical order."""
    return sorted(folder.parent.name for folder in WEIGHTS.glob("*/config.json"))


def path(name: str) -> Path:
    """The folder of the embedded model `<name>` or `zoo/<name>`. Raises ValueError for an unknown one."""
    short = name.removeprefix("zoo/")
    if short not in names():
        raise ValueError(
            f"no embedded model {name!r}: choose one of {', '.join(names()) or '(none is installed)'}"
        )
    return WEIGHTS / short
