"""Fused operations, one file each: formula, source and PyTorch reference, which is the CPU path.

Imports nothing. transformers looks for a package of this name: `__version__ = "0"` tells it to look
elsewhere.
"""

__version__ = "0"
