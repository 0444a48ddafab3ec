"""Merging checkpoints piece by piece: theta0 and branches in, a checkpoint out, in one pass."""
