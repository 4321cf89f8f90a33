"""Fused operations, one file each: formula, PyTorch reference (the CPU path) and GPU kernel.

Imports nothing. transformers looks for a package of this name: `__version__ = "0"` tells it to look
elsewhere.
"""

__version__ = "0"
