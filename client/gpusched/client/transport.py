"""How channels to the scheduler are opened. Imports grpc; everything light stays out of here."""

from __future__ import annotations

import ipaddress

import grpc
import grpc.aio

from gpusched.client.address import split_address

MAX_MESSAGE_BYTES = 4 * 1024 * 1024

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A proxy meant for the web would make the loopback address unreachable.
    ("grpc.enable_http_proxy", 0),
    # Come back within a second of the server's return; the "min" is how long one attempt may take,
    # so that a busy server is not given up and a port that never answers is.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # No service config from DNS, and no retries behind our back: a retried Acquire would be a second ticket.
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_retries", 0),
    # Each channel its own connection: the end of one must not depend on another in the same process.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(address: str) -> grpc.Channel:
    """A channel to `host:port`; it connects at the first call. Close it when done."""
    return grpc.insecure_channel(_target(address), options=CHANNEL_OPTIONS)


def open_aio_channel(address: str) -> grpc.aio.Channel:
    """The same for asyncio; call it inside the running loop that will use it."""
    return grpc.aio.insecure_channel(_target(address), options=CHANNEL_OPTIONS)


def _target(address: str) -> str:
    """The address with its resolver named, so that a host called `unix` is not taken for a socket."""
    host, _ = split_address(address)
    try:
        return f"ipv{ipaddress.ip_address(host).version}:{address}"
    except ValueError:
        return f"dns:///{address}"
