"""Free TCP ports for servers that listen only after they have imported everything, seconds or minutes later."""

from __future__ import annotations

import random
import socket
from pathlib import Path

# Above those that Ray gives its workers, below those that Linux takes for outgoing connections.
_FIRST, _LAST = 20_000, 32_000
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A loopback TCP port nobody listens on now, and that no outgoing connection is given meanwhile.

    What the system itself offers (port 0) is one of those: until the server listens, a browser may have it.
    """
    outgoing = outgoing_ports()
    inside = [port for port in range(_FIRST, _LAST) if port not in outgoing]
    for port in [*random.SystemRandom().sample(inside, min(50, len(inside))), 0]:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise RuntimeError("no free TCP port on 127.0.0.1")


def outgoing_ports() -> range:
    """The ports that the system takes for connections that programs open; empty where it does not say."""
    try:
        first, last = map(int, _OUTGOING.read_text().split())
    except (OSError, ValueError):
        return range(0)
    return range(first, last + 1)
