"""The corners are found where the drawing script put them."""

import numpy as np
import pytest
from conftest import INPUTS, draw, truth
from PIL import Image

from screen_replacement import light
from screen_replacement.errors import NoGreenScreen, NotAQuadrilateral
from screen_replacement.screen import find_screen


def photo(name: str) -> np.ndarray:
    return np.asarray(Image.open(INPUTS / name / "photo.png").convert("RGB"))


def furthest(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.hypot(*(found - expected).T).max())


@pytest.mark.parametrize("name", ["laptop-desk", "phone-tilted"])
def test_within_a_pixel_of_the_truth(name):
    assert furthest(find_screen(light.to_linear(photo(name))).corners, truth(name)) < 1


@pytest.mark.parametrize("name", ["laptop-desk", "phone-tilted"])
def test_within_a_pixel_in_strong_noise(name):
    noise = np.random.default_rng(1).normal(0, 8, photo(name).shape)
    noisy = np.clip(photo(name) + noise, 0, 255).astype(np.uint8)
    assert furthest(find_screen(light.to_linear(noisy)).corners, truth(name)) < 1


@pytest.mark.parametrize("name", ["laptop-desk", "phone-tilted"])
def test_green_specks_do_not_matter(name):
    array = photo(name).copy()
    rng = np.random.default_rng(2)
    for x, y in zip(rng.integers(10, 940, 60), rng.integers(10, 620, 60)):
        array[y : y + 4, x : x + 4] = (20, 220, 60)
    assert furthest(find_screen(light.to_linear(array)).corners, truth(name)) < 1


@pytest.mark.parametrize("degrees", [0, 3, 17, 40, -33])
def test_rotated_rectangle(degrees):
    a = np.radians(degrees)
    turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    corners = np.array([[-110, -60], [110, -60], [110, 60], [-110, 60]]) @ turn + (200, 150)
    found = find_screen(light.to_linear(np.asarray(draw("polygon", [tuple(p * 4) for p in corners])))).corners
    assert furthest(found, corners) < 0.5


def test_no_screen():
    with pytest.raises(NoGreenScreen, match="no green screen found"):
        find_screen(light.to_linear(photo("no-screen")))


@pytest.mark.parametrize(
    "shape, points",
    [
        ("ellipse", (400, 200, 1200, 1000)),
        ("polygon", [(400, 200), (1200, 300), (700, 1000)]),
        ("polygon", [(300, 200), (1300, 200), (1300, 500), (700, 500), (700, 1000), (300, 1000)]),
        ("polygon", [(800, 100), (1250, 400), (1100, 1000), (500, 1000), (350, 400)]),
        ("rectangle", (-10, 300, 900, 900)),
    ],
    ids=["circle", "triangle", "L", "pentagon", "over the edge"],
)
def test_not_a_quadrilateral(shape, points):
    with pytest.raises(NotAQuadrilateral):
        find_screen(light.to_linear(np.asarray(draw(shape, points))))
