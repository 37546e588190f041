"""Batches of packed documents, made by worker processes. Knows corpus and tokenizer, nothing of torch.

Batch number b depends on (seed, b) alone: worker w makes the batches w, w + W, w + 2W, ... and the training
process takes them in turn, so that the data is the same for any number of workers and after a resumption.
"""

import multiprocessing
import signal
from bisect import bisect_left, insort
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workbench.models.zoo.config import TrainConfig
from workbench.models.zoo.corpus import tasks
from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.tokens import Encoder

ITEMS_A_BATCH = 1_000_000  # item numbers set apart for each batch
TOO_MANY = 1_000  # texts in a row that are too long: no more will come that fit
QUEUED = 4  # batches a worker makes ahead


class Batch(NamedTuple):
    """One step's data: the targets are the tokens shifted by one."""

    tokens: NDArray[np.uint16]  # [rows, row_tokens + 1]
    weights: NDArray[np.uint8]  # [rows, row_tokens + 1]; loss weight of the token, in hundredths


class Document(NamedTuple):
    tokens: list[int]
    weights: list[int]  # hundredths


def documents(config: TrainConfig, encoder: Encoder, index: int) -> Iterator[Document]:
    """Documents of batch `index`, the task furthest below its share next, until the batch is full."""
    room = config.rows * (config.row_tokens + 1)
    made = dict.fromkeys(config.mixture, 0.0)  # tokens of each task over its share
    number = index * ITEMS_A_BATCH
    skipped = 0  # in a row
    prompt, eos = round(100 * config.prompt_weight), 100
    while room > 0:
        task = min(made, key=made.__getitem__)
        ids, targets = encoder.encode_segments(tasks.make(task, "train", config.seed, number).segments)
        number += 1
        if len(ids) > config.row_tokens + 1:
            skipped += 1
            if skipped > TOO_MANY:
                raise ValueError(
                    f"of {skipped} texts none fits a row of {config.row_tokens} tokens: raise row_tokens, or"
                    " take other tasks into the mixture"
                )
            made[task] += 1.0  # too long for a row: left out, and the task still moves on
            continue
        skipped = 0
        made[task] += len(ids) / config.mixture[task]
        room -= len(ids)
        weights = [eos if target else prompt for target in targets]
        weights[0] = 0  # nobody predicts where the next document begins
        yield Document(ids, weights)


def pack(docs: list[Document], config: TrainConfig, dice: Dice) -> Batch:
    """Whole documents into rows, longest first, each into the fullest row with room; the rest is dropped."""
    size = config.row_tokens + 1
    rows: list[list[Document]] = [[] for _ in range(config.rows)]
    space = [(size, row) for row in range(config.rows)]  # sorted
    for doc in sorted(docs, key=lambda doc: -len(doc.tokens)):
        at = bisect_left(space, (len(doc.tokens), -1))
        if at < len(space):
            left, row = space.pop(at)
            rows[row].append(doc)
            insort(space, (left - len(doc.tokens), row))
    batch = Batch(np.zeros((config.rows, size), np.uint16), np.zeros((config.rows, size), np.uint8))
    for row, chosen in enumerate(rows):
        at = 0
        for doc in dice.shuffled(chosen):
            batch.tokens[row, at : at + len(doc.tokens)] = doc.tokens
            batch.weights[row, at : at + len(doc.tokens)] = doc.weights
            at += len(doc.tokens)
    return batch


def make_batch(config: TrainConfig, encoder: Encoder, index: int) -> Batch:
    """Batch number `index`."""
    return pack(list(documents(config, encoder, index)), config, Dice(config.seed, "pack", index))


def work(config: TrainConfig, folder: Path, first: int, queue: "multiprocessing.Queue[Batch]") -> None:
    """A worker's life: its batches, one after the other, into its queue. The training process ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    encoder = Encoder(folder)
    index = first
    while True:
        queue.put(make_batch(config, encoder, index))
        index += config.workers


class Feed:
    """Batches in order from batch `start` on; close it to end its workers."""

    def __init__(self, config: TrainConfig, folder: Path, start: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.config, self.folder, self.index = config, folder, start
        self.encoder = Encoder(folder) if config.workers == 0 else None
        self.queues = [context.Queue(QUEUED) for _ in range(config.workers)]
        self.workers = [
            context.Process(target=work, args=(config, folder, start + i, queue), daemon=True)
            for i, queue in enumerate(self.queues)
        ]
        for worker in self.workers:
            worker.start()
        self.start = start

    def next(self) -> Batch:
        """The next batch. Raises RuntimeError when a worker has died."""
        index, self.index = self.index, self.index + 1
        if self.encoder is not None:
            return make_batch(self.config, self.encoder, index)
        which = (index - self.start) % len(self.workers)
        while self.queues[which].empty() and self.workers[which].is_alive():
            self.workers[which].join(0.005)
        if not self.workers[which].is_alive():
            raise RuntimeError(
                f"data worker {which} ended with code {self.workers[which].exitcode}: see its error above"
            )
        return self.queues[which].get()

    def close(self) -> None:
        """Ends the workers."""
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.join()
