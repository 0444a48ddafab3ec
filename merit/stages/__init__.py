"""The pipeline's stages: read, call, write."""
