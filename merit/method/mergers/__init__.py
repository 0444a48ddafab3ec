"""Merging branches: tensors in, tensor out; one file a method."""
