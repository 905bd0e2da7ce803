"""Sparse networks by local competition, and the words for what fired."""

from lwta.functional import Winners, lwta
from lwta.layers import LWTA, TopK

__all__ = ["LWTA", "TopK", "Winners", "lwta"]
