"""Stains: the vectors of H&E, and normalisation of pictures and slides to the stain of a target."""

from wsi_seg.stain.vectors import STAINS

__all__ = ["STAINS"]
