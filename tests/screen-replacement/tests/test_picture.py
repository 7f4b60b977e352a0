"""The screenshot's content really is where it belongs, and nothing else has changed."""

import shutil

import numpy as np
import pytest
from conftest import INPUTS, draw, truth
from PIL import Image

from screen_replacement import compose, geometry, light


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("name", ["laptop-desk", "phone-tilted"])
def test_each_part_of_the_screenshot_is_at_its_place(run, name):
    """A chart of coloured fields: the middle of each is looked up through the true corners."""
    shutil.copytree(INPUTS / name, run.inputs / name)
    width, height, n = 640, 640, 8
    colours = np.random.default_rng(3).integers(0, 256, (n, n, 3), dtype=np.uint8)
    Image.fromarray(colours.repeat(80, 0).repeat(80, 1)).save(run.inputs / name / "screenshot.png")

    done = run(name)
    assert done.returncode == 0, done.stderr
    before = pixels(INPUTS / name / "photo.png")
    after = pixels(run.outputs / "job-1" / f"{name}.png")
    assert after.shape == before.shape

    corners = truth(name)
    matrix = geometry.homography(np.array([[0, 0], [width, 0], [width, height], [0, height]], float), corners)
    right = seen = 0
    for row in range(n):
        for column in range(n):
            x, y = geometry.project(matrix, np.array(80 * column + 40.0), np.array(80 * row + 40.0))
            x, y = int(x), int(y)
            r, g, _ = np.moveaxis(before[y - 2 : y + 3, x - 2 : x + 3], 2, 0)
            if g.min() < 190 or r.max() > 90:
                continue  # a finger or the camera is in front
            seen += 1
            patch = after[y - 2 : y + 3, x - 2 : x + 3]
            # In linear light, where the reflection of the window adds up to 0.02.
            off = light.to_linear(patch).mean(axis=(0, 1)) - light.to_linear(colours[row, column])
            right += bool(np.abs(off).max() < 0.03)
    assert seen >= 50
    assert right == seen

    # Away from the screen nothing has changed.
    y, x = np.mgrid[0 : before.shape[0], 0 : before.shape[1]] + 0.5
    outside = compose.distance_outside(corners, x, y)
    assert (after == before)[outside > compose.SPILL_REACH + 3].all()


@pytest.mark.parametrize("name", ["laptop-desk", "phone-tilted"])
def test_no_green_fringe(run, name):
    shutil.copytree(INPUTS / name, run.inputs / name)
    Image.new("RGB", (300, 300), (128, 128, 128)).save(run.inputs / name / "screenshot.png")
    assert run(name).returncode == 0
    after = pixels(run.outputs / "job-1" / f"{name}.png").astype(int)
    y, x = np.mgrid[0 : after.shape[0], 0 : after.shape[1]] + 0.5
    near = compose.distance_outside(truth(name), x, y) < 8
    excess = after[..., 1] - np.maximum(after[..., 0], after[..., 2])
    assert excess[near].max() < 14


def test_edge_is_anti_aliased(run):
    """A slanted edge between white screen and grey passes through values in between."""
    corners = [(300, 260), (1300, 330), (1250, 960), (340, 900)]
    run.add("slanted", draw("polygon", corners), Image.new("RGB", (64, 64), (255, 255, 255)))
    assert run("slanted").returncode == 0
    column = pixels(run.outputs / "job-1" / "slanted.png")[60:100, 200, 0].astype(int)
    assert column[0] < 80 and column[-1] > 250
    assert (np.diff(column) > -3).all()
    rows = pixels(run.outputs / "job-1" / "slanted.png")[60:100, 150:250, 0]
    assert ((rows > 90) & (rows < 240)).sum() > 50
