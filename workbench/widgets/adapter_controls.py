"""What widgets ask about LoRA adapters, where an engine has them enabled: colours by them, and which one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workbench.trace.pictures.adapter_colours import Colours, adapters_of, colours_of
from workbench.widgets.feed import Feed


class ColourBy:
    """Two buttons; `choice.value = "adapter"` does what a click does."""

    def __init__(self, refresh: Callable[[], None]) -> None:
        from ipywidgets import HBox, ToggleButtons

        self.choice = ToggleButtons(options=["kind", "adapter"], description="colour by")
        self.choice.observe(lambda _: refresh(), "value")
        self.control: Any = HBox([self.choice])
        self.control.layout.display = "none"

    def colours(self, feed: Feed) -> Colours | None:
        """Those of adapters, where they are chosen and there are some; of the feed's requests."""
        there = bool(feed.config.get("enable_lora"))
        self.control.layout.display = None if there else "none"
        # The table of requests is worked out anew each time: only where it is wanted.
        return colours_of(feed["requests"]) if there and self.choice.value == "adapter" else None


class AdapterChoice:
    """The base model, or one of the adapters that requests had; `choice.value = "poet"` takes one."""

    def __init__(self, refresh: Callable[[], None]) -> None:
        from ipywidgets import Dropdown, HBox

        self._refresh, self._silent = refresh, False
        self.choice = Dropdown(description="adapter", options=[("base model", None)])
        self.choice.observe(self._chosen, "value")
        self.control: Any = HBox([self.choice])
        self.control.layout.display = "none"

    @property
    def name(self) -> str | None:
        """None: the base model."""
        found: str | None = self.choice.value
        return found

    def _chosen(self, change: Any) -> None:
        if not self._silent:
            self._refresh()

    def offer(self, feed: Feed) -> None:
        """Those of the feed's requests."""
        names = adapters_of(feed["requests"])
        self.control.layout.display = None if names else "none"
        options = [("base model", None), *((name, name) for name in names)]
        if options != list(self.choice.options):
            self._silent, kept = True, self.name
            self.choice.options = options
            self.choice.value = kept if kept in names else None
            self._silent = False
