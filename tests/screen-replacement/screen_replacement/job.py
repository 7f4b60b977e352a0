"""One job: read the inputs, replace the screen, write the picture."""

import os
import re
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from . import compose, light
from .errors import BadIdentifier, InputMissing, OutputNotWritten, UnreadableImage
from .progress import report
from .screen import find_screen

PROJECT = Path(__file__).resolve().parent.parent
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MOST_PIXELS = 50_000_000


def run(identifier: str | None, job_id: str | None) -> Path:
    """Returns the path of the picture written; raises a JobError if there is none."""
    identifier = _checked("--id", identifier)
    job_id = _checked("--jobId", job_id)
    inputs = Path(os.environ.get("SCREEN_REPLACEMENT_INPUTS") or PROJECT / "inputs")
    outputs = Path(os.environ.get("SCREEN_REPLACEMENT_OUTPUTS") or PROJECT / "outputs")

    _step(0, f"Reading {identifier}")
    photo = _read(inputs, identifier, "photo.png")
    screenshot = _read(inputs, identifier, "screenshot.png")

    _step(20, "Looking for the green screen")
    screen = find_screen(photo)
    where = ", ".join(f"({x:.1f}, {y:.1f})" for x, y in screen.corners)
    print(f"Corners of the screen: {where}", flush=True)

    _step(40, "Warping the screenshot")
    height, width = photo.shape[:2]
    box = compose.box_around(screen.corners, width, height)
    warped = compose.warp(screenshot, screen.corners, box)

    _step(70, "Blending it into the photo")
    result = compose.replace_screen(photo, screen, box, warped)

    _step(90, "Writing the picture")
    path = _write(outputs, job_id, identifier, light.to_image(result))
    report(100, f"Done: {path.name}")
    print(f"[100 %] Wrote {path}", flush=True)
    return path


def _step(percent: int, status: str) -> None:
    report(percent, status)
    print(f"[{percent:3d} %] {status}", flush=True)
    # Only to have time to look at a running job, or to cancel it.
    time.sleep(float(os.environ.get("SCREEN_REPLACEMENT_SECONDS_PER_STEP") or 0))


def _checked(option: str, value: str | None) -> str:
    if not value:
        raise BadIdentifier(f"{option} is missing")
    if not IDENTIFIER.fullmatch(value):
        raise BadIdentifier(
            f"{option} {value[:120]!r} is not valid: it must be 1 to 100 letters, digits, '.', '_' or '-', "
            "and start with a letter or digit"
        )
    return value


def _read(inputs: Path, identifier: str, name: str) -> np.ndarray:
    path = inputs / identifier / name
    shown = f"{identifier}/{name}"
    # The identifier has no slash in it; this is for links that lead out of the folder.
    if not path.resolve().is_relative_to(inputs.resolve()):
        raise BadIdentifier(f"--id {identifier!r} leads out of the inputs folder {inputs}")
    if not path.is_file():
        raise InputMissing(f"input {shown} does not exist in {inputs}")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UnreadableImage(f"{shown} has more than {MOST_PIXELS} pixels")
            return light.to_linear(np.asarray(image.convert("RGB")))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()).replace(str(path), shown)
        raise UnreadableImage(f"{shown} is not a readable image: {reason}") from error


def _write(outputs: Path, job_id: str, identifier: str, picture: Image.Image) -> Path:
    """Write beside the final name and rename, so that the name never shows half a picture."""
    path = outputs / job_id / f"{identifier}.png"
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            picture.save(file, format="PNG")
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.rename(path)
        temporary = None
    except OSError as error:
        raise OutputNotWritten(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path
