"""Puts together who drafts for an engine. Knows the drafters there are."""

from __future__ import annotations

from workbench.config import EngineConfig
from workbench.speculate.config import SpeculativeConfig
from workbench.speculate.drafter import Drafter
from workbench.speculate.ngram import NgramDrafter
from workbench.speculate.pace import Pace
from workbench.speculate.relay import Relay
from workbench.speculate.speculator import Speculator
from workbench.speculate.suffix import SuffixDrafter


def make_speculator(config: EngineConfig) -> Speculator | None:
    """None where nothing is to be drafted."""
    wanted = config.speculation
    if wanted is None:
        return None
    room = wanted.room(config.max_num_seqs)
    pace = Pace(config.max_num_seqs, room.each) if wanted.adaptive else None
    return Speculator(_drafter(wanted, config.max_num_seqs, config.max_model_len), room, pace)


def _drafter(wanted: SpeculativeConfig, rows: int, length: int) -> Drafter:
    if wanted.method == "suffix":
        return SuffixDrafter(rows)
    if wanted.method == "draft_model":
        return Relay()
    return NgramDrafter(rows, length, wanted.prompt_lookup_min, wanted.prompt_lookup_max)
