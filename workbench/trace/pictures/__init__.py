"""Pictures of a trace: a module each, from tables to SVG or HTML text. No widgets, no scripts, no state."""
