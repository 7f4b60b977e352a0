"""sRGB to linear light and back. Light mixes linearly, so all the arithmetic is done there."""

import numpy as np
from PIL import Image


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """uint8 sRGB to float32 linear light, 0 to 1."""
    value = np.arange(256) / 255
    table = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return table.astype(np.float32)[srgb]


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light to sRGB as float, 0 to 255, not yet rounded."""
    value = np.clip(linear, 0, 1)
    return 255 * np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)


def to_image(linear: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(to_srgb(linear)).astype(np.uint8), "RGB")


def blur(channel: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of one channel, as three box blurs; the border is repeated."""
    radius = max(1, round((np.sqrt(4 * sigma**2 + 1) - 1) / 2))
    out = channel.astype(np.float64)
    for axis in (0, 1, 0, 1, 0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (radius + 1, radius)
        total = np.cumsum(np.pad(out, pad, mode="edge"), axis=axis)
        n = 2 * radius + 1
        if axis == 0:
            out = (total[n:] - total[:-n]) / n
        else:
            out = (total[:, n:] - total[:, :-n]) / n
    return out
