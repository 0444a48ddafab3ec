"""One module a study: `measure` computes a JSON-ready result, `draw` turns it into figures."""
