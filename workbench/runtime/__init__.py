"""The runtime: what a plan becomes on a device. Never imports the scheduler."""
