"""`merit preflight`: what an experiment takes, before anything is downloaded or trained.

From exact counts (a model's config.json), measured rates (reports/benchmarks) and stated
assumptions (facts.yaml); every line says which.
"""
