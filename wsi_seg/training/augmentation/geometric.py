"""Operations that move pixels. Each adds to one field, so image and annotation cannot go apart.

Lengths are in pixels of the crop, or shares of its side where so said. What comes from beyond the picture is mirrored.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BeforeValidator, Field, model_validator
from scipy.interpolate import CubicSpline

from wsi_seg.training.augmentation.base import Amounts, Factors, Geometric, Range, draw_factor
from wsi_seg.training.augmentation.warp import Bulge, Floats, Warp, knots

Axis = Literal["horizontal", "vertical"]
Axes = Annotated[
    tuple[Axis, ...], Field(min_length=1), BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]
Turns = Annotated[tuple[Annotated[int, Field(ge=1, le=3)], ...], Field(min_length=1)]
Points = Annotated[tuple[tuple[float, float], ...], Field(min_length=1)]


def _affine(rows: npt.ArrayLike, shift: npt.ArrayLike = (0, 0)) -> Floats:
    matrix = np.eye(3)
    matrix[:2, :2] = rows
    matrix[:2, 2] = shift
    return matrix


def _rotation(radians: float) -> Floats:
    cos, sin = np.cos(radians), np.sin(radians)
    return _affine([[cos, -sin], [sin, cos]])


class Flip(Geometric):
    """Mirror along one of the axes."""

    axes: Axes = ("horizontal",)

    def bend(self, warp: Warp, rng: np.random.Generator) -> Warp:
        across = self.axes[rng.integers(len(self.axes))] == "horizontal"
        return warp.projected(_affine(np.diag([-1, 1] if across else [1, -1])))


class QuarterTurn(Geometric):
    """Rotate by one of these numbers of right angles."""

    turns: Turns = (1, 2, 3)

    def bend(self, warp: Warp, rng: np.random.Generator) -> Warp:
        turns = self.turns[rng.integers(len(self.turns))]
        return warp.projected(np.round(_rotation(turns * np.pi / 2)))


class Rotate(Geometric):
    """Rotate about the middle. step: only by multiples of it, from the first angle on."""

    degrees: Range = (-180.0, 180.0)
    step: float | None = Field(None, gt=0)

    def bend(self, warp: Warp, rng: np.random.Generator) -> Warp:
        low, high = self.degrees
        if self.step is None:
            degrees = rng.uniform(low, high)
        else:
            degrees = low + self.step * rng.integers(int((high - low) / self.step + 1e-9) + 1)
        return warp.projected(_rotation(np.deg2rad(degrees)))


class Scale(Geometric):
    """Enlarge, or below 1 shrink."""

    factor: Factors = (0.7, 1.4)

    def bend(self, warp: Warp, rng: np.random.Generator) -> Warp:
        return warp.projected(_affine(np.eye(2) / draw_factor(rng, self.factor)))


class Shrink(Scale):
    """Shrink; the surroundings come into the crop."""

    factor: Factors = (0.8, 0.8)


class Shear(Geometric):
    """Move rows, or columns, by a share of their distance from the middle."""

    share: Range = (-0.1, 0.1)

    def bend(self, warp: Warp, rng: np.random.Generator) -> Warp:
        share = rng.uniform(*self.share)
        rows = np.array([[1, share], [0, 1]])
        return warp.projected(_affine(rows if rng.random() < 0.5 else rows.T))


class Shift(Geometric):
    """Move along both axes, each by a share of the crop's side."""

    share: Range = (-0.1, 0.1)

    def bend(self, warp: Warp, rng: np.random.Generator) -> Warp:
        return warp.projected(_affine(np.eye(2), rng.uniform(*self.share, 2) * warp.crop_px))


class Perspective(Geometric):
    """See the crop from aside: each corner comes from further inside.

    inset: standard deviation of how far inside, of either coordinate, in shares of the side.
    """

    inset: Amounts = (0.05, 0.1)

    def bend(self, warp: Warp, rng: np.random.Generator) -> Warp:
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * warp.crop_px / 2
        inset = np.abs(rng.normal(0, rng.uniform(*self.inset), (4, 2))).clip(max=0.4)
        return warp.projected(_homography(corners, corners * (1 - 2 * inset)))


def _homography(points: Floats, images: Floats) -> Floats:
    """Return the projective matrix that takes four points to their images."""
    equations, values = [], []
    for (x, y), (u, v) in zip(points, images, strict=True):
        equations += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(equations), np.array(values)), 1).reshape(3, 3)


class JitterCrop(Geometric):
    """Cut a strip off each side and enlarge what is left to the crop's size.

    share: width of a strip, in shares of the side. right: that of the right one, where it differs.
    """

    share: Amounts = (0.0, 0.05)
    right: Amounts | None = None

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        cut = self.share[1] + max(self.share[1], (self.right or self.share)[1])
        if cut >= 1:
            raise ValueError(f"opposite strips may take {cut:g} of the side; expected less than 1 together")
        return self

    def bend(self, warp: Warp, rng: np.random.Generator) -> Warp:
        left, top, bottom = rng.uniform(*self.share, 3)
        right = rng.uniform(*(self.right or self.share))
        shift = np.array([left - right, top - bottom]) / 2 * warp.crop_px
        return warp.projected(_affine(np.diag([1 - left - right, 1 - top - bottom]), shift))


class GridElastic(Geometric):
    """Displace the points of a coarse grid, and what is between them smoothly (Ronneberger et al., MICCAI 2015).

    largest_px: of each coordinate. points: of the grid, along each side.
    """

    largest_px: float = Field(4.0, ge=0)
    points: int = Field(5, ge=4)

    def least_px(self) -> int:
        return 2  # a single pixel has no room for points

    def bend(self, warp: Warp, rng: np.random.Generator) -> Warp:
        coarse = rng.uniform(-self.largest_px, self.largest_px, (2, self.points, self.points))
        fine = CubicSpline(np.linspace(0, warp.crop_px - 1, self.points), np.eye(self.points))(knots(warp.crop_px))
        return warp.displaced(_over_plane(fine, coarse, fine))


class Elastic(Geometric):
    """Displace by noise that a Gaussian has smoothed (Simard, Steinkraus and Platt, ICDAR 2003).

    alpha: what the smoothed uniform noise is multiplied by. sigma: of the Gaussian, pixels.
    over_channels: noise for each of three channels that the Gaussian goes across too, as in the programs that an alpha
    of about 1000 comes from; it makes displacements 12 times smaller at sigma 8. Off: as in the paper.
    """

    alpha: Amounts = (1300.0, 1300.0)
    sigma: Factors = (8.0, 8.0)
    over_channels: bool = True

    def bend(self, warp: Warp, rng: np.random.Generator) -> Warp:
        alpha, sigma = rng.uniform(*self.alpha), rng.uniform(*self.sigma)
        smooth, _ = _smoothing(warp.crop_px, sigma)
        size = alpha / np.sqrt(3)  # the standard deviation of uniform noise from -1 to 1 is 1 / sqrt(3)
        if self.over_channels:
            weights = np.exp(-(np.arange(-1, 2) ** 2) / (2 * sigma**2)) / (np.sqrt(2 * np.pi) * sigma)
            size *= np.linalg.norm(weights)
        noise = rng.standard_normal((2, *smooth.shape[1:] * 2))
        return warp.displaced(size * _over_plane(smooth, noise, smooth))


class GaussianDistortion(Geometric):
    """Displace along the slope of noise that a Gaussian has smoothed.

    largest: displacement along each axis, in shares of the crop's side. sigma: of the Gaussian, pixels.
    """

    largest: Amounts = (0.02, 0.03)
    sigma: Factors = (40.0, 40.0)

    def bend(self, warp: Warp, rng: np.random.Generator) -> Warp:
        largest_px = rng.uniform(*self.largest) * warp.crop_px
        smooth, slope = _smoothing(warp.crop_px, rng.uniform(*self.sigma))
        noise = rng.standard_normal(smooth.shape[1:] * 2)
        ways = np.stack([_over_plane(smooth, noise, slope), _over_plane(slope, noise, smooth)])
        return warp.displaced(ways * (largest_px / np.abs(ways).max(axis=(1, 2), keepdims=True)))


def _over_plane(rows: Floats, values: Floats, columns: Floats) -> Floats:
    """Return rows @ values @ columns.T.

    By torch: on cores that others use too, the threads that numpy does it with wait for each other 100 times as long.
    """
    first, middle, last = (torch.from_numpy(matrix) for matrix in (rows, values, columns))
    product: Floats = (first @ middle @ last.T).numpy()
    return product


def _smoothing(crop_px: int, sigma: float) -> tuple[Floats, Floats]:
    """Return (K, m) matrices from white noise along a line to its smooth version at the knots, and to its slope.

    The noise is given at every half sigma and weighted as if it were at every pixel: unit noise becomes noise of
    variance 1 / (2 sqrt(pi) sigma).
    """
    away = knots(crop_px)[:, None] - np.arange(-3 * sigma, crop_px + 3 * sigma, sigma / 2)
    smooth = np.exp(-(away**2) / (2 * sigma**2))
    smooth *= np.sqrt(1 / (2 * np.sqrt(np.pi) * sigma)) / np.linalg.norm(smooth, axis=1, keepdims=True)
    return smooth, -away / sigma**2 * smooth


class Barrel(Geometric):
    """Enlarge the middle of a disc: the distance from it is scaled by sin(pi/2 * distance/radius) ** amount.

    centres: one of these is the disc's; (x, y) from the crop's upper left. All lengths are in shares of its side.
    """

    amount: Amounts = (0.3, 0.3)
    radius: Factors = (0.3, 0.3)
    centres: Points = ((0.3, 0.3), (0.7, 0.3), (0.5, 0.5), (0.3, 0.7), (0.7, 0.7))

    def bend(self, warp: Warp, rng: np.random.Generator) -> Warp:
        return warp.bulged(self._bulge(warp.crop_px, rng, 1))

    def _bulge(self, crop_px: int, rng: np.random.Generator, sign: int) -> Bulge:
        x, y = ((share - 0.5) * crop_px for share in self.centres[rng.integers(len(self.centres))])
        return Bulge(x, y, rng.uniform(*self.radius) * crop_px, sign * rng.uniform(*self.amount))


class Pincushion(Barrel):
    """Shrink the middle of a disc: a barrel with the amount negated."""

    def bend(self, warp: Warp, rng: np.random.Generator) -> Warp:
        return warp.bulged(self._bulge(warp.crop_px, rng, -1))
