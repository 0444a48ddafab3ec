"""MERIT: conflict-aware splitting, independent branches and one weight average.

Choi & Kim, "Decentralized Instruction Tuning: Conflict-Aware Splitting and Weight
Merging", ICML 2026 (arXiv:2606.01717).
"""

import merit.pins  # noqa: F401 - before numpy and torch

__version__ = "0.1.0"
