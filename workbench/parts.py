"""What an open LLM consists of; a closed one has let go of all of it. Decides nothing."""

from __future__ import annotations

from typing import NamedTuple

from workbench.build import Built
from workbench.intake import Intake
from workbench.loras import Loras
from workbench.streams import AsyncStreams


class Parts(NamedTuple):
    built: Built
    intake: Intake
    streams: AsyncStreams
    loras: Loras
