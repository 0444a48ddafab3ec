"""The stages that judge models: evaluate and report."""
