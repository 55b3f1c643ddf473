"""Starts a server where there is no network: ``unshare --net python offline_start.py COMMAND... PORT``.

Prints a JSON object: ``answered`` (what /info/ said), ``seconds``, ``reached`` (whether an outside address
could be reached after all, which would make the trial worthless) and ``log``.
"""

import fcntl
import json
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
PATIENCE_S = 600


def bring_up_loopback() -> None:
    """What ``ip link set lo up`` does, without needing iproute2."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh", b"lo", 0).ljust(40, b"\0")
        flags = struct.unpack_from("16sh", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP).ljust(40, b"\0"))


def outside_reached() -> bool:
    """Whether anything but this machine answers."""
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=3).close()
    except OSError as error:
        return "unreachable" not in str(error).lower()
    return True


def ask(port: int):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/info/", timeout=30) as reply:
            return json.load(reply)
    except OSError:
        return None


def main(command: list[str]) -> None:
    bring_up_loopback()
    started, answered = time.monotonic(), None
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd="/")
        while answered is None and server.poll() is None and time.monotonic() < started + PATIENCE_S:
            time.sleep(0.5)
            answered = ask(int(command[-1]))
        seconds = time.monotonic() - started
        server.terminate()
        server.wait(120)
        log.seek(0)
        text = log.read().decode(errors="replace")
    report = {"answered": answered, "seconds": seconds, "reached": outside_reached(), "log": text}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
