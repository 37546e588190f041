"""The engine's own scheduler and cache with no model behind them."""
