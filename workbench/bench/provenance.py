"""Where and with what a figure was measured: date, device, versions, commit. Measures nothing."""

from __future__ import annotations

import importlib.metadata
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import workbench

ROOT = Path(workbench.__file__).parents[1]
UNKNOWN = "unknown"


def provenance(device_name: str) -> dict[str, str]:
    """The columns that every row of measurements begins with."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": device_name,
        "torch": version("torch"),
        "triton": version("triton"),
        "workbench": workbench.__version__,
        "commit": commit(ROOT),
    }


def version(package: str) -> str:
    """Of an installed package; "none" where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def commit(root: Path) -> str:
    """The commit checked out at `root`, with "-dirty" where files differ; "unknown" without a checkout."""
    if not (root / ".git").exists():  # a repository further up is somebody else's
        return UNKNOWN
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or a checkout that is another user's
        return UNKNOWN
    return done.stdout.strip() or UNKNOWN
