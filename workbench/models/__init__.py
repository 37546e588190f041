"""Models: what a folder holds (spec), its weights on a device (loading), and the forward pass (decoder)."""
