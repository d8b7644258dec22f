"""Requests that cannot be parsed: told in our own words, rather than by a traceback in the log.

The library turns a failing deserializer into UNKNOWN and a logged exception, which any local user could cause at
will. Here the failure travels to the servicer method as a value, and `errors.guarded` refuses the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError


@dataclass(frozen=True, slots=True)
class Malformed:
    """What a servicer method gets in place of a request that is no message of the right type."""

    why: str


class Registrar:
    """Stands in for a server while servicers are added to it, and lets their methods see malformed requests.

    Args:
        server: where the servicers are really added; all their methods must be `guarded`.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        self._server.add_generic_rpc_handlers(tuple(_Handlers(handler) for handler in handlers))


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs alone
    """Another handler's methods with forgiving deserializers, made at a method's first call."""

    def __init__(self, inner: grpc.GenericRpcHandler[Any, Any]) -> None:
        self._inner = inner
        self._known: dict[str, Any] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        name = handler_call_details.method
        found = self._known.get(name)
        if found is None:
            inner: Any = self._inner.service(handler_call_details)
            if inner is None:
                return None
            found = self._known[name] = _forgiving(inner)
        return found


def _forgiving(handler: Any) -> Any:
    deserialize = _try(handler.request_deserializer)
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(handler.unary_unary, deserialize, handler.response_serializer)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(handler.unary_stream, deserialize, handler.response_serializer)
    return grpc.stream_stream_rpc_method_handler(handler.stream_stream, deserialize, handler.response_serializer)


def _try(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def attempt(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return Malformed(str(error))

    return attempt
