"""The command line and the executor of the pipeline."""
