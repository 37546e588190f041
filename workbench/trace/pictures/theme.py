"""The colours of all pictures, light and dark, and what every picture's markup looks like.

Kinds have colours of Okabe and Ito's palette, which are told apart by all common kinds of colour vision and
by their lightness; amounts have viridis'. In the dark the same hues are lighter where they would drown.
Whatever is drawn stands in an element of class `wb`, whose variables follow JupyterLab's theme, or else the
system's.
"""

from __future__ import annotations

from functools import cache
from html import escape
from pathlib import Path

LIGHT = {
    "paper": "#ffffff", "ink": "#1b1f24", "quiet": "#5b6570", "line": "#d9dee3", "card": "#f4f6f8",
    "prefill": "#0072b2", "decode": "#e69f00", "accepted": "#009e73", "rejected": "#cc79a7",
    "waiting": "#c3cad1", "preempted": "#d55e00", "dropped": "#cc79a7", "finished": "#1b1f24",
    "held": "#0072b2", "cached": "#d55e00", "found": "#009e73", "mark": "#fdf0cf",
    "shared": "#009e73", "evicted": "#f0e442",
    "base": "#c3cad1", "adapter0": "#0072b2", "adapter1": "#e69f00", "adapter2": "#009e73",
    "adapter3": "#cc79a7", "adapter4": "#56b4e9", "adapter5": "#d55e00", "further": "#5b6570",
}  # fmt: skip
DARK = LIGHT | {
    "paper": "#14171a", "ink": "#e4e7ea", "quiet": "#9aa4ae", "line": "#31373d", "card": "#1d2226",
    "prefill": "#56b4e9", "accepted": "#2fc79a", "rejected": "#e29ac4",
    "waiting": "#4d555d", "preempted": "#ff7f3f", "dropped": "#e29ac4", "finished": "#e4e7ea",
    "held": "#56b4e9", "cached": "#ff7f3f", "found": "#2fc79a", "mark": "#4a3a10",
    "shared": "#2fc79a",
    "base": "#4d555d", "adapter0": "#3d9be0", "adapter2": "#2fc79a", "adapter3": "#e29ac4",
    "adapter4": "#a5dcff", "adapter5": "#ff7f3f", "further": "#9aa4ae",
}  # fmt: skip
ADAPTERS = tuple(f"adapter{number}" for number in range(6))  # LoRA adapters, the first seen first
KINDS = (
    "prefill", "decode", "accepted", "rejected", "waiting", "preempted", "dropped", "finished",
    "held", "cached", "found", "shared", "evicted", "base", *ADAPTERS, "further",
)  # fmt: skip
VIRIDIS = (
    "#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b",
    "#fde725",
)  # fmt: skip


# How surprising something is: the more, the more it stands out from the paper. [8] colours of viridis, and of
# the text on them; what was expected is hardly coloured at all.
_ON_PAPER = [(VIRIDIS[k], "#1b1f24" if k > 4 else "#ffffff") for k in (8, 7, 6, 5, 4, 3, 2, 0)]
_IN_THE_DARK = [(VIRIDIS[k], "#1b1f24" if k > 4 else "#ffffff") for k in (1, 2, 3, 4, 5, 6, 7, 9)]


def _levels(colours: dict[str, str], scale: list[tuple[str, str]]) -> dict[str, str]:
    levels = [(colours["card"], colours["ink"]), *scale]
    return {f"{name}{k}": pair[at] for k, pair in enumerate(levels) for at, name in enumerate(("s", "t"))}


@cache
def style() -> str:
    """The style sheet; it touches nothing but elements of class `wb` and what is in them."""
    themes = (LIGHT | _levels(LIGHT, _ON_PAPER), DARK | _levels(DARK, _IN_THE_DARK))
    light, dark = (f"{{{_variables(colours)}}}" for colours in themes)
    kinds = "".join(f".wb .{k}{{fill:var(--wb-{k})}}.wb i.{k}{{background:var(--wb-{k})}}" for k in KINDS)
    kinds += "".join(
        f".wb .s{k}{{fill:var(--wb-s{k});background:var(--wb-s{k});color:var(--wb-t{k})}}"
        for k in range(1 + len(_ON_PAPER))
    )
    return (
        f".wb{light}@media (prefers-color-scheme: dark){{.wb{dark}}}"
        f'[data-jp-theme-light="true"] .wb{light}[data-jp-theme-light="false"] .wb{dark}'
        f"{kinds}{Path(__file__).with_name('pictures.css').read_text(encoding='utf-8')}"
    )


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--wb-{name}:{value};" for name, value in colours.items())


def legend(*entries: tuple[str, str]) -> str:
    """A line of (kind, what it means)."""
    keys = "".join(f'<span class="key"><i class="{kind}"></i>{escape(text)}</span>' for kind, text in entries)
    return f'<p class="legend">{keys}</p>'


def heading(text: str) -> str:
    """What a picture says, in words above it."""
    return f"<h4>{escape(text)}</h4>"


def message(text: str) -> str:
    """What stands where a picture would."""
    return f'<p class="message">{escape(text)}</p>'
