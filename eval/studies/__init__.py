"""One module a study: `measure` computes a JSON-ready result, and no more (merit.eval.stages.study)."""
