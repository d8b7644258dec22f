"""Health and reflection: the library's servicers, refusing what cannot be read as ours do.

Left to themselves they answer UNKNOWN and log a traceback, which any local user could cause at will.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pool

from gpusched.scheduler.core.errors import Invalid
from gpusched.scheduler.rpc.decoding import Malformed, Registrar
from gpusched.scheduler.rpc.errors import abort


class Companions(Registrar):
    """Stands in for a server while the library's servicers are added to it."""

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        super().add_generic_rpc_handlers([_Guarded(handler) for handler in handlers])

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """What the library's generated code calls besides; servers of asyncio make no use of it."""


class Symbols:
    """The pool of all descriptors, in which a method can be found, too: tools ask for `Service.Method`."""

    def __init__(self) -> None:
        self._pool: Any = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, name: str) -> Any:  # noqa: N802
        """Raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(name)
        except KeyError:
            return self._pool.FindMethodByName(name).containing_service.file


class _Guarded(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs alone
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        found: Any = self._inner.service(handler_call_details)
        if found is None:
            return None
        codecs = {"request_deserializer": found.request_deserializer, "response_serializer": found.response_serializer}
        if found.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(_one(found.unary_unary), **codecs)
        if found.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(_one(found.unary_stream), **codecs)
        return grpc.stream_stream_rpc_method_handler(_many(found.stream_stream), **codecs)


def _one(method: Callable[..., Any]) -> Callable[..., Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        await _refuse_malformed(request, context)
        return await method(request, context)

    return call


def _many(method: Callable[..., Any]) -> Callable[..., Any]:
    async def call(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        async def readable() -> AsyncIterator[Any]:
            async for request in requests:
                await _refuse_malformed(request, context)
                yield request

        async for response in method(readable(), context):
            yield response

    return call


async def _refuse_malformed(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    if isinstance(request, Malformed):
        await abort(context, Invalid(f"the request cannot be read: {request.why}"))
