"""Command line: `invoke --list`."""

import signal
import sys

from invoke import Exit, task


# `positional=[]`: both are options, never bare words. Invoke turns only underscores into
# dashes, so the parameter must be spelled jobId to be accepted as --jobId.
@task(
    positional=[],
    help={"id": "folder below inputs/ with photo.png and screenshot.png", "jobId": "folder below outputs/ for the picture"},
)
def generate_screen_replacement(c, id=None, jobId=None):  # noqa: N803
    """Put inputs/ID/screenshot.png into the green screen of inputs/ID/photo.png."""
    from screen_replacement import job
    from screen_replacement.errors import JobError

    # Leave by way of an exception, so that a half-written file is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        job.run(id, jobId)
    except JobError as error:
        raise Exit(f"generate-screen-replacement: {error}.", code=error.exit_code)


@task
def make_inputs(c):
    """Draw the example inputs (photos, screenshots, true corners) into inputs/ again."""
    from screen_replacement import drawing

    drawing.make_inputs()
