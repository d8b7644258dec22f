"""Where the scheduler is: from an argument, the environment, or the default."""

from __future__ import annotations

import ipaddress
import os
import re

from gpusched.client.usage import UsageError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 9123

_ALLOWED = "give host:port, such as 127.0.0.1:9123, gpubox:9123, [::1]:9123 or grpc://gpubox:9123"
_ALLOWED_PORT = "give a port number from 1 to 65535"
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")


def server_address(url: str | None = None) -> str:
    """The scheduler's address as `host:port` (an IPv6 host in brackets).

    Args:
        url: `host:port`, `grpc://host:port` or `http://host:port`; None or empty for the environment's
            `GPUSCHED_URL`, else port `GPUSCHED_PORT` of this machine, else `127.0.0.1:9123`.

    Raises:
        UsageError: if the argument or the variable is none of these.
    """
    if url:
        return _parse(url, "url")
    if from_environment := os.environ.get("GPUSCHED_URL"):
        return _parse(from_environment, "GPUSCHED_URL")
    if port := os.environ.get("GPUSCHED_PORT"):
        return f"{DEFAULT_HOST}:{parse_port(port, 'GPUSCHED_PORT')}"
    return f"{DEFAULT_HOST}:{DEFAULT_PORT}"


def parse_port(text: str, field: str = "port") -> int:
    """A TCP port from text; raises UsageError unless it is 1 to 65535."""
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or not 1 <= int(text) <= 65535:
        raise UsageError(field, text, _ALLOWED_PORT)
    return int(text)


def split_address(address: str) -> tuple[str, int]:
    """Host (without brackets) and port of an address as `server_address` gives it."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether `host:port` is this machine's loopback; names other than localhost are not looked up."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse(url: str, field: str) -> str:
    text = url.strip()
    scheme, separator, rest = text.partition("://")
    if separator:
        if scheme.lower() == "https":
            raise UsageError(field, url, f"TLS is not offered yet; {_ALLOWED}")
        if scheme.lower() not in ("http", "grpc"):
            raise UsageError(field, url, _ALLOWED)
        text = rest
    host, _, port = text.removesuffix("/").rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        try:
            name = f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            raise UsageError(field, url, _ALLOWED) from None
    elif _HOST.fullmatch(host):
        # Never look localhost up: somebody else may sit on its ::1.
        name = DEFAULT_HOST if host.lower() == "localhost" else host
    else:
        raise UsageError(field, url, _ALLOWED)
    try:
        return f"{name}:{parse_port(port, field)}"
    except UsageError:
        raise UsageError(field, url, f"{_ALLOWED}; the port is 1 to 65535") from None
