"""Progress reaches a real socket; the picture appears all at once."""

import os
import signal
import socket
import subprocess
import time

import pytest
from conftest import PROJECT, draw
from PIL import Image


@pytest.fixture
def good(run):
    run.add("good", draw("rectangle", (400, 300, 1200, 900)))
    return run


def listen(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(0.2)
    return sock


def received(sock: socket.socket) -> list[tuple[int, str]]:
    result = []
    try:
        while True:
            first, second = sock.recv(4096).decode().split("\n")
            assert first.startswith("X_PROGRESS=") and second.startswith("STATUS=")
            result.append((int(first[11:]), second[7:]))
    except TimeoutError:
        return result


@pytest.mark.parametrize("abstract", [False, True])
def test_progress_in_order_up_to_100(good, tmp_path, abstract):
    name = f"screen-replacement-{os.getpid()}"
    path = str(tmp_path / "notify")
    with listen("\0" + name if abstract else path) as sock:
        assert good("good", NOTIFY_SOCKET="@" + name if abstract else path).returncode == 0
        messages = received(sock)
    percents = [p for p, _ in messages]
    assert percents == sorted(set(percents))
    assert percents[0] == 0 and percents[-1] == 100 and len(percents) >= 5
    assert all(status for _, status in messages)
    assert messages[-1][1] == "Done: good.png"


def test_failed_job_never_says_100(run, tmp_path):
    run.add("grey", Image.new("RGB", (200, 200), (90, 90, 90)))
    with listen(str(tmp_path / "notify")) as sock:
        assert run("grey", NOTIFY_SOCKET=str(tmp_path / "notify")).returncode == 6
        assert [p for p, _ in received(sock)] == [0, 20]


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@nobody-listens", "relative", "vsock:2:1234", "/" + "x" * 300])
def test_a_socket_that_fails_does_not_fail_the_job(good, address):
    done = good("good", NOTIFY_SOCKET=address)
    assert (done.returncode, done.stderr) == (0, "")


def test_human_lines_and_only_the_picture(good):
    done = good("good", "j7")
    assert "Looking for the green screen" in done.stdout
    assert str(good.outputs / "j7" / "good.png") in done.stdout
    assert [p.name for p in (good.outputs / "j7").iterdir()] == ["good.png"]


def test_a_failed_write_keeps_the_old_picture(good, monkeypatch):
    from screen_replacement import job
    from screen_replacement.errors import OutputNotWritten

    folder = good.outputs / "j"
    folder.mkdir(parents=True)
    (folder / "good.png").write_text("old")

    class Full:
        def save(self, file, format):
            file.write(b"half a picture")
            assert (folder / "good.png").read_text() == "old"
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputNotWritten, match="No space left"):
        job._write(good.outputs, "j", "good", Full())
    assert [p.name for p in folder.iterdir()] == ["good.png"]
    assert (folder / "good.png").read_text() == "old"


def test_stopping_it_leaves_no_picture(good, tmp_path):
    with listen(str(tmp_path / "notify")) as sock:
        env = {**good.env, "NOTIFY_SOCKET": str(tmp_path / "notify"), "SCREEN_REPLACEMENT_SECONDS_PER_STEP": "30"}
        process = subprocess.Popen(
            good.command("--id", "good", "--jobId", "j"), cwd=PROJECT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        sock.settimeout(30)
        assert sock.recv(4096).startswith(b"X_PROGRESS=0\n")
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (143, b"")
    assert time.monotonic() - started < 5
    assert not good.outputs.exists()
