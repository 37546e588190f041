"""Trains a zoo model from a configuration and writes its folder. Knows data feed, model and optimizers.

The run ends after a number of steps or of minutes. The learning rate is a function of the share of the run
that is over: a short warm-up, a plateau, a linear decay to zero (warmup-stable-decay).
"""

import csv
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.models.zoo import checkpoint, export, low_rank, optim, registry, score, tokens
from workbench.models.zoo.checkpoint import Progress
from workbench.models.zoo.config import TrainConfig
from workbench.models.zoo.data import Batch, Feed
from workbench.models.zoo.model import Llama

log = logging.getLogger(__name__)

LOG, HELDOUT = "train.csv", "heldout.csv"
LOG_FIELDS = ("step", "seconds", "tokens", "loss", "lr_scale", "tokens_per_second")
HELDOUT_FIELDS = ("step", "seconds", "task", "kind", "n", "right", "perplexity")


class Device(NamedTuple):
    """Where a run computes."""

    name: str  # "cuda" or "cpu"
    dtype: torch.dtype

    def wait(self) -> None:
        """Returns when the device has done what it was given."""
        if self.name == "cuda":
            torch.cuda.synchronize()


class Inputs(NamedTuple):
    tokens: Tensor  # [rows, row_tokens] int64
    targets: Tensor  # [rows, row_tokens] int64
    weights: Tensor  # [rows, row_tokens] float32


def train(config: TrainConfig, out: Path, *, resume: bool = True, device: str | None = None) -> Path:
    """Runs the configuration and leaves the model's folder, its logs and a checkpoint in `out`.

    Ctrl-C ends the training early; the folder is written all the same. Raises ValueError when `out` holds a
    checkpoint of another configuration.
    """
    where = device_for(config, device)
    out.mkdir(parents=True, exist_ok=True)
    model, optimizers = build(config, where)
    progress = checkpoint.restore(out, config, model, optimizers) if resume else Progress()
    if progress.step == 0:
        for name in (LOG, HELDOUT):
            (out / name).unlink(missing_ok=True)  # of an earlier run
    feed = Feed(config, tokens.FOLDER, progress.step)
    with stop_on_signal() as stop:
        try:
            Run(config, out, where, model, optimizers, progress).loop(feed, stop)
        finally:
            feed.close()
    checkpoint.save(out, config, model, optimizers, progress)
    if config.adapter:
        low_rank.write(model, f"zoo/{config.adapter.base}", config.adapter, out)
    else:
        export.write(model, tokens.FOLDER, out)
    log.info("wrote %s after %d steps, %.0f s", out, progress.step, progress.seconds)
    return out


@contextmanager
def stop_on_signal() -> Iterator[Event]:
    """An event that Ctrl-C and SIGTERM set, so that a run ends between two steps and not within one."""
    stop = Event()
    old = {}
    if threading.current_thread() is threading.main_thread():
        old = {
            number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)
        }
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def device_for(config: TrainConfig, name: str | None) -> Device:
    """The named device, or a GPU if there is one. Raises ValueError for one that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device: train with --device cpu")
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    return Device(name, getattr(torch, config.dtype))


def build(config: TrainConfig, where: Device) -> tuple[Llama, list[torch.optim.Optimizer]]:
    """The model and its optimizers; the first weights are drawn on the CPU, the same everywhere."""
    torch.manual_seed(config.seed)
    if config.adapter:
        model = low_rank.attach(export.load(registry.path(config.adapter.base)), config.adapter)
        model.dtype = where.dtype
    else:
        model = Llama(config.model, where.dtype)
    model.to(where.name)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.info("%s: %.2f M parameters", config.name, count / 1e6)
    if config.adapter:
        return model, optim.plain(model, config.other_lr)
    return model, optim.build(model, config.matrix_lr, config.other_lr, config.weight_decay)


def lr_scale(config: TrainConfig, done: float) -> float:
    """The factor on the learning rates when a share `done` of the run, 0 to 1, is over."""
    rising = (done + 1e-3) / max(config.warmup, 1e-3)
    falling = (1 - done) / max(config.decay, 1e-3)
    return max(0.0, min(1.0, rising, falling))


def to_device(batch: Batch, where: Device) -> Inputs:
    """The batch as tensors on the device, targets shifted by one."""
    ids, weights = torch.from_numpy(batch.tokens), torch.from_numpy(batch.weights)
    if where.name == "cuda":
        ids, weights = ids.pin_memory(), weights.pin_memory()
    ids, weights = (part.to(where.name, non_blocking=True) for part in (ids, weights))
    ids = ids.long()
    return Inputs(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), weights[:, 1:].float() / 100)


class Run:
    """The loop over steps, with its logs."""

    def __init__(
        self, config: TrainConfig, out: Path, where: Device, model: Llama,
        optimizers: list[torch.optim.Optimizer], progress: Progress,
    ) -> None:  # fmt: skip
        self.config, self.out, self.where = config, out, where
        self.model, self.optimizers, self.progress = model, optimizers, progress
        self.base_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self.loss: Callable[..., Tensor] = torch.compile(model) if config.compile else model
        self.evaluated = progress.seconds

    def done(self) -> float:
        """The share of the run that is over."""
        if self.config.max_steps:
            return self.progress.step / self.config.max_steps
        return self.progress.seconds / (60 * self.config.max_minutes)

    def loop(self, feed: Feed, stop: Event) -> None:
        """Steps until the run is over or stopped. The clock starts behind the first step, which compiles."""
        window: list[Tensor] = []
        start = time.perf_counter()
        if self.done() < 1:
            window.append(self.step(feed))
        self.where.wait()
        log.info("first step after %.0f s, %d workers", time.perf_counter() - start, self.config.workers)
        base = time.perf_counter() - self.progress.seconds
        since = self.progress.seconds
        while self.done() < 1 and not stop.is_set():
            window.append(self.step(feed))
            if self.progress.step % self.config.log_every == 0 or self.done() >= 1:
                self.where.wait()
                self.progress.seconds = time.perf_counter() - base
                self.record(window, self.progress.seconds - since)
                base += self.maybe_evaluate()
                window, since = [], self.progress.seconds
        if window and not stop.is_set():  # a run of one step
            self.progress.seconds = time.perf_counter() - base
            self.record(window, self.progress.seconds - since)
        if stop.is_set():
            log.warning("interrupted at step %d: writing what there is", self.progress.step)

    def step(self, feed: Feed) -> Tensor:
        """One update; returns the loss, still on the device."""
        inputs = to_device(feed.next(), self.where)
        scale = lr_scale(self.config, self.done())
        for optimizer, lrs in zip(self.optimizers, self.base_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * scale
        loss = self.loss(*inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        return loss.detach()

    def record(self, window: list[Tensor], seconds: float) -> None:
        """One line of the loss log."""
        tokens_a_step = self.config.rows * self.config.row_tokens
        loss = float(torch.stack(window).mean())
        rate = len(window) * tokens_a_step / max(seconds, 1e-9)
        scale = lr_scale(self.config, self.done())
        step, elapsed = self.progress.step, self.progress.seconds
        row = (step, f"{elapsed:.2f}", step * tokens_a_step, f"{loss:.4f}", f"{scale:.4f}", f"{rate:.0f}")
        append(self.out / LOG, LOG_FIELDS, [row])
        log.info("step %d  %.0f s  loss %.4f  lr %.3f  %.0f tokens/s", step, elapsed, loss, scale, rate)

    def maybe_evaluate(self) -> float:
        """Evaluates on held-out items when it is time; returns the seconds it took, not to be counted."""
        due = (
            self.config.eval_minutes
            and self.progress.seconds - self.evaluated >= 60 * self.config.eval_minutes
        )
        if not due or self.done() >= 1:
            return 0.0
        start = time.perf_counter()
        checkpoint.save(self.out, self.config, self.model, self.optimizers, self.progress)
        evaluate(self.model, self.out, self.config.eval_items, self.progress)
        self.evaluated = self.progress.seconds
        return time.perf_counter() - start


def evaluate(model: Llama, out: Path, items: int, progress: Progress) -> list[score.Score]:
    """Held-out scores of the model as it is, appended to heldout.csv and logged."""
    scores = score.all_kinds(model, tokens.Encoder(tokens.FOLDER), items, longest=1024)
    rows = [
        (progress.step, f"{progress.seconds:.1f}", s.task, s.kind, s.n, s.right, f"{s.perplexity:.4f}")
        for s in scores
    ]
    append(out / HELDOUT, HELDOUT_FIELDS, rows)
    log.info("held out: %s", "  ".join(f"{s.task} {s.accuracy:.0%}" for s in score.by_task(scores)))
    return scores


def append(path: Path, fields: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    """Adds rows to a CSV file, with a head line when it is new."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(fields)
        writer.writerows(rows)
