"""Warps the screenshot onto the screen and blends it into the photo."""

import numpy as np

from . import geometry, light
from .screen import Screen

SPILL_REACH = 24.0  # pixels around the screen in which its green light is taken back


def warp(screenshot: np.ndarray, corners: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The screenshot in perspective, for the pixels of `box` (left, top, right, bottom).

    Every pixel is the mean of several bilinear samples spread over its area, enough of them
    that no source pixel is skipped where the screenshot shrinks.
    """
    height, width = screenshot.shape[:2]
    frame = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    matrix = geometry.homography(corners, frame)
    sides = np.hypot(*(np.roll(corners, -1, axis=0) - corners).T)
    shrink = max(width / min(sides[0], sides[2]), height / min(sides[1], sides[3]))
    n = int(np.clip(np.ceil(shrink), 2, 8))
    left, top, right, bottom = box
    y, x = np.mgrid[top:bottom, left:right].astype(np.float64)
    total = np.zeros((*x.shape, 3), np.float32)
    for dy in (np.arange(n) + 0.5) / n:
        for dx in (np.arange(n) + 0.5) / n:
            total += geometry.sample(screenshot, *geometry.project(matrix, x + dx, y + dy))
    return total / n**2


def distance_outside(corners: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far each point lies outside the quadrilateral's sides; negative inside."""
    result = np.full(x.shape, -np.inf)
    for a, b in zip(corners, np.roll(corners, -1, axis=0)):
        d = (b - a) / np.hypot(*(b - a))
        result = np.maximum(result, (x - a[0]) * d[1] - (y - a[1]) * d[0])
    return result


def replace_screen(photo: np.ndarray, screen: Screen, box: tuple[int, int, int, int], warped: np.ndarray) -> np.ndarray:
    """The photo with the warped screenshot in place of the green."""
    left, top, right, bottom = box
    part = np.s_[top:bottom, left:right]
    y, x = np.mgrid[top:bottom, left:right] + 0.5
    outside = distance_outside(screen.corners, x, y)

    # The matte counts only on the screen itself and on its blurred edge.
    raw = np.clip(screen.matte[part], 0, 1) * np.clip(3.5 - outside, 0, 1)
    alpha = np.clip((raw - 0.04) / 0.88, 0, 1)[..., None]

    # Taking the key's light out leaves what is in front of it: edge, finger, reflection.
    rest = np.maximum(photo[part] - raw[..., None] * screen.key[part], 0)
    # Where all is screen, the rest is reflection and noise. Keep the first, smooth the second.
    solid = (alpha[..., 0] >= 1).astype(float)
    weight = np.maximum(light.blur(solid, 5), 1e-6)
    grey = (photo[part] - screen.key[part]).min(axis=2)
    reflection = np.maximum(light.blur(grey * solid, 5) / weight, 0)[..., None]
    rest = np.where(solid[..., None] > 0, reflection, rest)

    # De-spill: near the screen nothing may be greener than it is red or blue.
    near = np.clip(1 - outside / SPILL_REACH, 0, 1)
    rest[..., 1] -= near * np.maximum(rest[..., 1] - np.maximum(rest[..., 0], rest[..., 2]), 0)

    result = photo.copy()
    result[part] = rest + alpha * warped
    return result


def box_around(corners: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    margin = SPILL_REACH + 2
    left, top = np.floor(corners.min(axis=0) - margin).astype(int)
    right, bottom = np.ceil(corners.max(axis=0) + margin).astype(int)
    return max(left, 0), max(top, 0), min(right, width), min(bottom, height)
