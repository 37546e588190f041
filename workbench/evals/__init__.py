"""Evaluations: what a model gets right, measured through the engine that serves it."""
