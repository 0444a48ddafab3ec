"""`merit check NAME`: what an experiment takes and lacks, before anything is computed."""
