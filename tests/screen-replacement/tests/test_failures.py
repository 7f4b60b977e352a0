"""Every failure has its exit code and one clear sentence, and leaves no picture."""

import os
import shutil

import pytest
from conftest import INPUTS, draw
from PIL import Image


def failed(run, done, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].endswith("."), done.stderr
    assert lines[0].startswith("generate-screen-replacement: ")
    for word in words:
        assert word in lines[0]
    assert not run.outputs.exists() or not any(p.is_file() for p in run.outputs.rglob("*"))


@pytest.mark.parametrize(
    "identifier",
    ["../secret", "..", ".", "a/b", "/etc", "a\\b", ".hidden", "-x", "--help", "a b", "x\n", "ü", "$(id)", "a" * 101, ""],
)
def test_hostile_identifiers(run, identifier):
    done = run(identifier)
    failed(run, done, 3, "--id")
    failed(run, run("laptop-desk", identifier), 3, "--jobId")


def test_identifier_that_is_a_link_out_of_the_inputs(run, tmp_path):
    shutil.copytree(INPUTS / "laptop-desk", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", run.inputs / "linked")
    failed(run, run("linked"), 3, "leads out of the inputs folder")


def test_missing_input(run):
    failed(run, run("nothing-here"), 4, "nothing-here/photo.png does not exist")


def test_missing_screenshot(run):
    (run.add("half", draw("rectangle", (400, 300, 1200, 900))) / "screenshot.png").unlink()
    failed(run, run("half"), 4, "half/screenshot.png does not exist")


@pytest.mark.parametrize("content", [b"", b"not a picture", None], ids=["empty", "text", "cut short"])
def test_unreadable_image(run, content):
    photo = run.add("broken", draw("rectangle", (400, 300, 1200, 900))) / "photo.png"
    photo.write_bytes(photo.read_bytes()[:700] if content is None else content)
    failed(run, run("broken"), 5, "broken/photo.png is not a readable image")


def test_no_green_screen(run):
    shutil.copytree(INPUTS / "no-screen", run.inputs / "no-screen")
    failed(run, run("no-screen"), 6, "no green screen found")


def test_not_a_quadrilateral(run):
    run.add("round", draw("ellipse", (400, 200, 1200, 1000)))
    failed(run, run("round"), 7, "not a quadrilateral")


def test_output_cannot_be_written(run):
    run.add("good", draw("rectangle", (400, 300, 1200, 900)))
    run.outputs.write_text("a file where the folder should be")
    done = run("good")
    assert done.returncode == 8
    assert done.stderr.startswith("generate-screen-replacement: cannot write ") and done.stderr.count("\n") == 1


def test_transparent_and_grey_images_are_fine(run):
    run.add("modes", draw("rectangle", (400, 300, 1200, 900)).convert("RGBA"), Image.new("L", (1, 1), 200))
    assert run("modes").returncode == 0
