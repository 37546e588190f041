"""Saves and restores the state of a training run, and refuses the state of another one."""

import pickle
from pathlib import Path

import torch
from torch import nn

from workbench.models.zoo.config import TrainConfig

FILE = "checkpoint.pt"


class Progress:
    """How far a run has come."""

    def __init__(self, step: int = 0, seconds: float = 0.0) -> None:
        self.step = step  # steps done
        self.seconds = seconds  # of training, without starts and evaluations


def save(
    out: Path,
    config: TrainConfig,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    progress: Progress,
) -> None:
    """Writes the checkpoint; an older one stays whole until the new one is."""
    state = {
        "fingerprint": config.fingerprint,
        "name": config.name,
        "step": progress.step,
        "seconds": progress.seconds,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    torch.save(state, out / f"{FILE}.new")
    (out / f"{FILE}.new").replace(out / FILE)


def restore(
    out: Path, config: TrainConfig, model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> Progress:
    """Loads the folder's checkpoint, if there is one, and says how far it had come.

    Raises ValueError when it belongs to another configuration, or cannot be read.
    """
    if not (out / FILE).exists():
        return Progress()
    device = next(model.parameters()).device
    try:
        state = torch.load(out / FILE, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{out / FILE} is damaged or no checkpoint: delete it to start anew, or give another --out"
        ) from error
    if state["fingerprint"] != config.fingerprint:
        raise ValueError(
            f"{out / FILE} is of another configuration ({state['name']}, {state['fingerprint']}; this is"
            f" {config.name}, {config.fingerprint}): give another --out, or delete it to start anew"
        )
    model.load_state_dict(state["model"])
    for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    return Progress(state["step"], state["seconds"])
