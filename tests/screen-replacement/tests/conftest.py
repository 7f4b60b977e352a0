import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from screen_replacement import light

PROJECT = Path(__file__).resolve().parent.parent
INPUTS = PROJECT / "inputs"


def truth(name: str) -> np.ndarray:
    return np.array(json.loads((INPUTS / name / "truth.json").read_text())["corners"])


class Runner:
    """Runs the task as a process of its own, with folders of its own."""

    def __init__(self, tmp_path: Path):
        self.inputs, self.outputs = tmp_path / "in", tmp_path / "out"
        self.inputs.mkdir()
        self.env = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
        self.env["SCREEN_REPLACEMENT_INPUTS"] = str(self.inputs)
        self.env["SCREEN_REPLACEMENT_OUTPUTS"] = str(self.outputs)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "invoke", "generate-screen-replacement", *arguments]

    def __call__(self, identifier: str, job_id: str = "job-1", **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command("--id", identifier, "--jobId", job_id),
            cwd=PROJECT, env={**self.env, **env}, capture_output=True, text=True, timeout=120,
        )

    def add(self, name: str, photo: Image.Image, screenshot: Image.Image | None = None) -> Path:
        folder = self.inputs / name
        folder.mkdir()
        photo.save(folder / "photo.png")
        (screenshot or Image.new("RGB", (160, 100), (200, 60, 30))).save(folder / "screenshot.png")
        return folder


@pytest.fixture
def run(tmp_path) -> Runner:
    return Runner(tmp_path)


def draw(shape: str, points) -> Image.Image:
    """A grey photo with one green shape, anti-aliased."""
    image = Image.new("RGB", (1600, 1200), (70, 66, 62))
    getattr(ImageDraw.Draw(image), shape)(points, fill=(22, 214, 70))
    return light.to_image(light.to_linear(np.asarray(image)).reshape(300, 4, 400, 4, 3).mean(axis=(1, 3)))
