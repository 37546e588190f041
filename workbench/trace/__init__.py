"""What the engine decided, kept as columns: recorded, tabulated, saved, and drawn as a page."""

from workbench.trace.trace import Trace

__all__ = ["Trace"]
