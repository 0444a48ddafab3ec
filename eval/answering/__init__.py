"""Putting questions to models: in batches of ours for VLMEvalKit, or by lm-eval."""
