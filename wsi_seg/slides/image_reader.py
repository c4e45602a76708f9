"""Plain images, decoded whole through Pillow: PNG, JPEG, BMP, JPEG 2000, and TIFFs that nothing else reads.

Pixel size: taken from the resolution that the file stores (pHYs, JFIF density, EXIF, TIFF tags), whose unit is the
inch, centimetre or metre, only where it can be a microscope's (see `PICTURE_MPP`): the 72, 300 or 1200 dpi that
programs and scanners of paper write are no pixel sizes. EXIF orientation is ignored: pixels are as stored. Transparent
pixels are laid over white. More than 8 bits per channel are refused, not scaled.
"""

from __future__ import annotations

import warnings

from PIL import Image

from wsi_seg.errors import SlideOpenError
from wsi_seg.geometry import Box
from wsi_seg.pixels import depth_problem, rgb_of
from wsi_seg.slides.base import RGB, Facts, Slide, UnsuitedError
from wsi_seg.slides.fingerprint import file_digest
from wsi_seg.slides.mpp import of_resolution

_UM_PER_INCH = 25400.0
_FORMATS = ("PNG", "JPEG", "BMP", "JPEG2000", "TIFF")  # others, such as EPS, start programs


class ImageSlide(Slide):
    """An image of one level, kept decoded in memory by each process that reads it."""

    def _open_handle(self) -> RGB:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong becomes an error, or does no harm
            try:
                with Image.open(self._location, formats=_FORMATS) as image:
                    self._dpi = image.info.get("dpi")
                    self._format = str(image.format)
                    return self._decode(image)
            except Image.DecompressionBombError as error:
                raise SlideOpenError(
                    self.path, f"is too large to decode whole ({error}); make it a tiled pyramid, for example with vips"
                ) from error
            except (SlideOpenError, MemoryError):
                raise
            except Exception as error:
                # Pillow passes on whatever a malformed file makes its decoders and its readers of metadata raise.
                fact = f"cannot be decoded as an image ({error})"
                raise SlideOpenError(self.path, f"{fact}; it may be truncated, copy it again") from error

    def _decode(self, image: Image.Image) -> RGB:
        if problem := depth_problem(image):
            raise UnsuitedError(self.path, problem)
        return rgb_of(image)

    def _facts(self) -> Facts:
        height, width, _ = self._get_handle().shape
        return Facts(((width, height),), ((256, 256),), self._mpp_xy(), {"image.format": self._format})

    def _mpp_xy(self) -> tuple[float, float] | None:
        try:
            x, y = (float(value) for value in self._dpi or ())
        except (TypeError, ValueError):
            return None
        return of_resolution(self.path, (_UM_PER_INCH / x, _UM_PER_INCH / y)) if x > 0 and y > 0 else None

    def _read_region(self, level: int, box: Box) -> RGB:
        pixels: RGB = self._get_handle()
        return pixels[box.y0 : box.y1, box.x0 : box.x1]

    def held_bytes(self) -> int:
        return int(self._get_handle().nbytes)

    def _digest(self) -> str:
        return file_digest(self._location)
