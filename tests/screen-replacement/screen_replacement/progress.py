"""Progress over the systemd notify protocol: one datagram per step to $NOTIFY_SOCKET."""

import os
import socket


def report(percent: int, status: str) -> None:
    """Send `X_PROGRESS` and `STATUS`. Nobody listening is never a reason to fail the job."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # Linux abstract socket
        address = "\0" + address[1:]
    status = " ".join(status.split())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1)
            sock.sendto(f"X_PROGRESS={percent}\nSTATUS={status}".encode(), address)
    except OSError:
        pass
