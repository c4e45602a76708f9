"""Stains of H&E as directions in optical density (Ruifrok and Johnston, Anal Quant Cytol Histol 2001)."""

from __future__ import annotations

import numpy as np

# the vectors that QuPath takes for H&E by default; the third is what neither explains
_HEMATOXYLIN = np.array([0.651, 0.701, 0.290])
_EOSIN = np.array([0.216, 0.801, 0.558])
# (stain, rgb): haematoxylin, eosin, the rest; each of length 1
STAINS = np.stack([v / np.linalg.norm(v) for v in (_HEMATOXYLIN, _EOSIN, np.cross(_HEMATOXYLIN, _EOSIN))])
