"""Optimiser, step, loop, randomness and checkpoints."""
