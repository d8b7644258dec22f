"""Channels to the scheduler, and how their failures are told. Imports grpc; everything light stays out of here."""

from __future__ import annotations

import ipaddress

import grpc
import grpc.aio

from gpusched.client.address import is_loopback, split_address
from gpusched.client.errors import GpuschedError, ServerUnavailable, from_rpc_error

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


def open_channel(address: str, *options: tuple[str, int]) -> grpc.Channel:
    """A channel to `host:port`, with further options; it connects at the first call. Close it when done."""
    return grpc.insecure_channel(_target(address), options=(*CHANNEL_OPTIONS, *options))


def open_aio_channel(address: str) -> grpc.aio.Channel:
    """The same for asyncio; call it inside the running loop that will use it."""
    return grpc.aio.insecure_channel(_target(address), options=CHANNEL_OPTIONS)


def failure(error: grpc.RpcError, address: str) -> GpuschedError:
    """The exception that a failed call means, with the address where that is the matter."""
    return addressed(from_rpc_error(error), address)


def addressed(error: GpuschedError, address: str) -> GpuschedError:
    """The same error; one that says that nobody answers also says where, and what to do."""
    if not isinstance(error, ServerUnavailable) or error.reason:
        return error
    text = f"no scheduler answers at {address}"
    if "refused" not in str(error).lower():
        text += f": {error}"
    elif is_loopback(address):
        text += "; start one with: gpusched serve --detach"
    return ServerUnavailable(text)


def _target(address: str) -> str:
    """The address with its resolver named, so that a host called `unix` is not taken for a socket."""
    host, _ = split_address(address)
    try:
        return f"ipv{ipaddress.ip_address(host).version}:{address}"
    except ValueError:
        return f"dns:///{address}"
