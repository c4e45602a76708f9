"""A picture in memory as a slide, for notebooks and for evaluation."""

from __future__ import annotations

import numpy as np

from wsi_seg.errors import UsageError
from wsi_seg.geometry import Box
from wsi_seg.slides.base import RGB, Facts, Slide
from wsi_seg.slides.fingerprint import digest_of


class ArraySlide(Slide):
    """A slide of one level that lies in memory.

    image_rgb: (Y, X, 3) uint8. mpp: micrometres per pixel. path: what messages call it.
    """

    def __init__(self, image_rgb: RGB, mpp: float, path: str = "image") -> None:
        if not isinstance(image_rgb, np.ndarray):
            raise UsageError(
                f"The image is of type {type(image_rgb).__name__}, expected a NumPy array, uint8 RGB of shape (Y, X, 3)"
            )
        if image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or image_rgb.dtype != np.uint8 or not image_rgb.size:
            raise UsageError(f"The image is {image_rgb.dtype} {image_rgb.shape}, expected uint8 RGB of shape (Y, X, 3)")
        self._image = image_rgb
        super().__init__(path, mpp)

    def _open_handle(self) -> RGB:
        return self._image

    def _facts(self) -> Facts:
        height, width = self._image.shape[:2]
        return Facts(level_dimensions=((width, height),), tiles=((1024, 1024),))

    def _read_region(self, level: int, box: Box) -> RGB:
        return self._image[box.y0 : box.y1, box.x0 : box.x1]

    def _digest(self) -> str:
        return digest_of([repr(self._image.shape).encode(), np.ascontiguousarray(self._image).tobytes()])
