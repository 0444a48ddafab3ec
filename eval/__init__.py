"""Benchmarks, generation, scoring by public engines, statistics and the report."""
