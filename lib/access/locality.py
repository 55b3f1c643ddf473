"""Whether a request comes from a program or a person on this very machine, who has not been sent by anybody else."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from lib.perimeter.origins import named_origins, normalised

# Somebody in between says so: the request's sender is not who it is from.
_FORWARDED = frozenset({
    b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"client-ip", b"true-client-ip", b"cf-connecting-ip",
    b"x-cluster-client-ip", b"fastly-client-ip", b"x-original-for", b"x-original-host", b"x-original-url",
    b"x-rewrite-url", b"x-remote-ip", b"x-remote-addr", b"x-originating-ip", b"x-nginx-proxy", b"x-scheme",
    b"x-envoy-external-address", b"x-arr-log-id", b"cdn-loop",
})  # fmt: skip


def is_local(scope: Mapping[str, Any]) -> bool:
    """A client at a loopback address that asked for a loopback host and was not forwarded by a proxy.

    The host is looked at because a page of any site can make a browser on this machine ask here under that site's own
    name (DNS rebinding); the browser then writes that name into ``Host``.

    A proxy on this machine that says nothing and asks for 127.0.0.1 itself looks like this machine. Three things may
    tell it: HTTP/1.0 (nginx's bare ``proxy_pass`` up to 1.29; no client of this server speaks it), the origin of a
    page that was opened at another name, and a browser that does not say from where its request comes: it does where
    it asks by TLS or for a loopback name (Fetch Metadata, 2.1), and so has asked for another one.
    """
    client = scope.get("client")
    if not client or not is_loopback(str(client[0])):
        return False
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1 or not _names_loopback(hosts[0].decode("latin-1")):
        return False
    if scope.get("http_version", "1.1") in {"0.9", "1.0"}:
        return False
    if any(name in _FORWARDED or name.startswith(b"x-forwarded") for name, _ in scope["headers"]):
        return False
    if _is_browser_elsewhere(scope["headers"]):
        return False
    origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
    return all(_opened_here(origin) for origin in origins)


def is_loopback(address: str) -> bool:
    """Whether an IP address is this machine's own (127.0.0.0/8, ::1, and the former as IPv6)."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def _is_browser_elsewhere(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a browser asks, by plain HTTP, for a name that is not loopback. Programs name no languages."""
    said = dict(headers)
    browser = said.get(b"user-agent", b"").startswith(b"Mozilla/") and b"accept-language" in said
    return browser and b"sec-fetch-site" not in said


def _opened_here(origin: str) -> bool:
    """Whether a page was opened at a loopback name, or is one that the settings name."""
    found = normalised(origin)
    if found is None:
        return False
    return found in named_origins() or found[1] == "localhost" or is_loopback(found[1])


def _names_loopback(host: str) -> bool:
    name, port = host, ""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            return False
        port = port[1:]
    elif ":" in host:
        name, _, port = host.partition(":")
    if port and not (port.isascii() and port.isdigit()):
        return False
    return name.lower() == "localhost" or is_loopback(name)
