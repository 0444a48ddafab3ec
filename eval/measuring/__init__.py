"""What the studies share: losses on the mixture, candidates and their scores."""
