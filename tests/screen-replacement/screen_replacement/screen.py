"""Finds the keyed (green) screen in a photo: its matte, its colour and its four corners."""

from dataclasses import dataclass

import numpy as np

from . import geometry
from .errors import NoGreenScreen, NotAQuadrilateral

SMALLEST_SHARE = 0.004  # of the picture; anything smaller is a speck, not a screen
MIN_GREEN = 0.08  # linear light by which green must exceed red and blue
MIN_PURITY = 0.65  # share of the green light that is excess; foliage stays well below


@dataclass
class Screen:
    corners: np.ndarray  # 4x2: top left, top right, bottom right, bottom left
    matte: np.ndarray  # raw share of key colour per pixel, about 0 to 1
    key: np.ndarray  # the key colour expected at each pixel if it is all screen


def find_screen(photo: np.ndarray) -> Screen:
    """`photo` is height x width x 3 in linear light."""
    excess = photo[..., 1] - np.maximum(photo[..., 0], photo[..., 2])
    mask = (excess > MIN_GREEN) & (excess > MIN_PURITY * photo[..., 1])
    region = _largest_region(mask)
    share = region.sum() / region.size
    if share < SMALLEST_SHARE:
        raise NoGreenScreen(
            f"no green screen found: the largest green area covers {share:.2%} of the photo, "
            f"at least {SMALLEST_SHARE:.2%} is needed"
        )
    if region[0].any() or region[-1].any() or region[:, 0].any() or region[:, -1].any():
        raise NotAQuadrilateral("the green screen runs over the edge of the photo, so its corners are not visible")

    level = _smooth_level(excess, region)
    matte = excess / level
    corners = _corners(region, matte)
    # Reflections only ever add light, so the purest pixels show the colour of the key itself.
    inside = photo[region]
    red = np.percentile(inside[:, 0] / excess[region], 10)
    blue = np.percentile(inside[:, 2] / excess[region], 10)
    key = level[..., None] * np.array([red, 1 + max(red, blue), blue], np.float32)
    return Screen(corners, matte, key)


def _largest_region(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected region of the mask, by joining runs row by row."""
    height, width = mask.shape
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    parent = list(range(len(rows)))

    def root(i):
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first = np.searchsorted(rows, np.arange(height + 1)).tolist()
    s, e = starts.tolist(), ends.tolist()
    for y in range(1, height):
        i, j = first[y - 1], first[y]
        while i < first[y] and j < first[y + 1]:
            if s[i] < e[j] and s[j] < e[i]:
                parent[root(i)] = root(j)
            if e[i] < e[j]:
                i += 1
            else:
                j += 1
    region = np.zeros_like(mask)
    if parent:
        labels = np.array([root(i) for i in range(len(parent))])
        sizes = np.bincount(labels, weights=ends - starts)
        for run in np.nonzero(labels == sizes.argmax())[0]:
            region[rows[run], starts[run] : ends[run]] = True
    return region


def _smooth_level(excess: np.ndarray, region: np.ndarray) -> np.ndarray:
    """How strong the key is at each pixel: a quadratic over the region, robust to outliers.

    Dividing by it takes uneven lighting out of the matte, so that a half covered edge
    pixel is 0.5 everywhere.
    """
    inner = region.copy()
    for _ in range(3):  # keep off the blurred edge
        inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    y, x = np.nonzero(inner if inner.sum() > 100 else region)
    step = max(1, len(x) // 20000)
    x, y = x[::step], y[::step]
    value = excess[y, x].astype(float)
    height, width = excess.shape

    def terms(x, y):
        u, v = x / width - 0.5, y / height - 0.5
        return [np.ones_like(u), u, v, u * u, u * v, v * v]

    basis = np.stack(terms(x, y), axis=1)
    keep = np.ones(len(value), bool)
    for _ in range(4):
        solution = np.linalg.lstsq(basis[keep], value[keep], rcond=None)[0]
        off = np.abs(basis @ solution - value)
        keep = off <= max(0.02, 3 * np.median(off))
    grid_y, grid_x = np.mgrid[0:height, 0:width].astype(np.float32)
    level = sum(float(s) * t for s, t in zip(solution, terms(grid_x, grid_y)))
    # Far from the screen the quadratic means nothing; keep it within what the screen shows.
    return np.clip(level, 0.9 * np.percentile(value, 2), 1.1 * np.percentile(value, 98)).astype(np.float32)


def _corners(region: np.ndarray, matte: np.ndarray) -> np.ndarray:
    wrong = NotAQuadrilateral("the green area is not a quadrilateral with four straight sides")
    rows = np.nonzero(region.any(axis=1))[0]
    left = region[rows].argmax(axis=1)
    right = region.shape[1] - region[rows, ::-1].argmax(axis=1)
    outline = np.concatenate([np.stack([x, y], axis=1) for x in (left, right) for y in (rows, rows + 1)])
    quad = geometry.enclosing_quadrilateral(geometry.convex_hull(outline))
    if quad is None:
        raise wrong
    _check_shape(quad, region, wrong)
    for reach in (0.03, 0.015, 0.0):
        quad, worst = _refine(quad, matte, reach)
        if quad is None:
            raise wrong
    if worst < 0.5:
        raise wrong
    _check_shape(quad, region, wrong)
    return _in_reading_order(quad)


def _refine(quad: np.ndarray, matte: np.ndarray, reach: float) -> tuple[np.ndarray | None, float]:
    """Fit a line to the half-covered points along each side; the corners are where they meet."""
    lines, worst = [], 1.0
    for a, b in zip(quad, np.roll(quad, -1, axis=0)):
        length = np.hypot(*(b - a))
        along = (b - a) / length
        inward = np.array([-along[1], along[0]])  # the quad runs clockwise on screen
        # Screens may have rounded corners: look only at the middle part of the side.
        at = a + np.linspace(0.12, 0.88, max(24, int(length)))[:, None] * (b - a)
        depth = np.arange(1, -1.001, -0.02 if length < 100 else -0.01) * max(4.0, reach * length)
        points = at[:, None, :] + depth[None, :, None] * inward
        profile = geometry.sample(matte, points[..., 0], points[..., 1])
        # From inside to outside, the first step below one half.
        below = profile < 0.5
        crossing = below.argmax(axis=1)
        ok = below.any(axis=1) & (crossing > 0)
        if ok.sum() < 12:
            return None, 0.0
        i, row = crossing[ok], np.nonzero(ok)[0]
        hi, lo = profile[row, i - 1], profile[row, i]
        part = (hi - 0.5) / np.maximum(hi - lo, 1e-6)
        exact = depth[i - 1] + part * (depth[i] - depth[i - 1])
        centre, direction, share = geometry.fit_line(at[row] + exact[:, None] * inward)
        worst = min(worst, share * ok.mean())
        lines.append((centre, direction))
    corners = [geometry.intersection(*lines[i - 1], *lines[i]) for i in range(4)]
    if any(c is None for c in corners):
        return None, 0.0
    return np.array(corners), worst


def _check_shape(quad: np.ndarray, region: np.ndarray, wrong: Exception) -> None:
    sides = np.roll(quad, -1, axis=0) - quad
    lengths = np.hypot(sides[:, 0], sides[:, 1])
    before = np.roll(sides, 1, axis=0)
    turn = np.degrees(
        np.arctan2(before[:, 0] * sides[:, 1] - before[:, 1] * sides[:, 0], (before * sides).sum(axis=1))
    )
    if lengths.min() < 12 or turn.min() < 20 or turn.max() > 160:
        raise wrong
    filled = region.sum() / geometry.area(quad)
    if not 0.7 < filled < 1.1:  # a finger may hide some of the screen, but not most of it
        raise wrong


def _in_reading_order(quad: np.ndarray) -> np.ndarray:
    """Start at the corner whose top side points most nearly to the right."""
    sides = np.roll(quad, -1, axis=0) - quad
    # Opposite sides count together, so that strong perspective cannot mislead.
    direction = sides / np.hypot(sides[:, 0], sides[:, 1])[:, None]
    score = direction[:, 0] - np.roll(direction, -2, axis=0)[:, 0]
    return np.roll(quad, -int(score.argmax()), axis=0)
