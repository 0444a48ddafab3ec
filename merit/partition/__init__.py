"""Assign an experiment's tasks, or tasks of any gradients, to groups."""
