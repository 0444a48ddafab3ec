"""Mixtures: the canonical example, a reader per source, and the generated mini world."""
