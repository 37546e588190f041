"""`workbench.kernels.<operation>`: beside this file in a wheel, in a checkout the top `kernels/`."""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[2] / "kernels"
if _checkout.is_dir() and (_checkout.parent / "pyproject.toml").is_file():
    __path__.append(str(_checkout))
