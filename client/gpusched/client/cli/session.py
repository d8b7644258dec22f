"""One command's connection to the scheduler: addresses, deadlines, errors, the administrator's token.

Imports grpc only when a call is made, so that help and mistakes in arguments cost nothing.
"""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from types import TracebackType
from typing import Any, Protocol

from gpusched.client.cli.output import Output
from gpusched.client.usage import UsageError

CALL_SECONDS = 10.0
"""How long an answer may take."""


class Stream(Protocol):
    """A server's stream of messages; `cancel` ends it from any thread."""

    def __iter__(self) -> Stream: ...
    def __next__(self) -> Any: ...
    def cancel(self) -> Any: ...


class Session:
    """A channel to the scheduler that the arguments and the environment name.

    Args:
        args: parsed arguments; `url` is taken from them.
        output: where a warning about the server's user goes.

    Raises:
        UsageError: if the address is none.
        PermissionDenied: if `GPUSCHED_SERVER_USER` refuses the server's user.
        ServerUnavailable: if that variable is set and nobody listens.
    """

    def __init__(self, args: Namespace, output: Output) -> None:
        from gpusched.client.address import server_address
        from gpusched.client.serveruser import check_server_user

        self.address = server_address(args.url)
        self._source = " (GPUSCHED_URL)" if os.environ.get("GPUSCHED_URL") and not args.url else ""
        self._channel: Any = None
        try:
            check_server_user(self.address, lambda text: output.error(f"note: {text}"))
        except ConnectionError:
            raise self._unavailable("") from None

        import gpusched.v1.scheduler_pb2_grpc as rpc
        from gpusched.client.transport import open_channel

        self._channel = open_channel(self.address)
        self._token: str | None = None
        self.scheduler: Any = rpc.SchedulerStub(self._channel)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()

    @property
    def admin(self) -> Any:
        """Stub of the administrator's service."""
        import gpusched.v1.admin_pb2_grpc as rpc

        return rpc.AdminStub(self._channel)

    @property
    def simulation(self) -> Any:
        """Stub of a simulated inventory's handles."""
        import gpusched.v1.simulation_pb2_grpc as rpc

        return rpc.SimulationStub(self._channel)

    def call(self, method: Any, request: Any, token: str | None = None) -> Any:
        """One unary call; raises GpuschedError."""
        import grpc

        metadata = [("authorization", f"Bearer {token}")] if token else None
        try:
            return method(request, timeout=CALL_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            raise self.failure(error) from None

    def call_as_admin(self, method: Any, request: Any) -> Any:
        """A unary call with the administrator's token; raises GpuschedError, PermissionDenied if there is none."""
        return self.call(method, request, token=self.token())

    def call_as_owner(self, method: Any, request: Any) -> Any:
        """A unary call as oneself and, where that is not allowed, as administrator if one is; raises GpuschedError."""
        from gpusched.client.errors import PermissionDenied

        try:
            return self.call(method, request)
        except PermissionDenied as refusal:
            try:
                token = self.token()
            except PermissionDenied:
                raise refusal from None
        return self.call(method, request, token=token)

    def token(self) -> str:
        """A token of the administrator, fetched once; raises PermissionDenied or ServerUnavailable."""
        if self._token is None:
            import gpusched.v1.scheduler_pb2 as pb
            from gpusched.client.admin import fetch_token
            from gpusched.client.serveruser import listener_uid

            status = self.call(self.scheduler.GetStatus, pb.GetStatusRequest())
            self._token = fetch_token(status.admin_socket, listener_uid(self.address))
        return self._token

    def failure(self, error: Any) -> Exception:
        """The exception that a failed call means, with what to do about it."""
        from gpusched.client.errors import ServerUnavailable, from_rpc_error

        failure = from_rpc_error(error)
        if isinstance(failure, ServerUnavailable) and not failure.reason:
            return self._unavailable(str(failure))
        return failure

    def _unavailable(self, detail: str) -> Exception:
        from gpusched.client.address import is_loopback
        from gpusched.client.autostart import may_start
        from gpusched.client.errors import ServerUnavailable

        refused = not detail or "refused" in detail.lower()
        text = f"no scheduler answers at {self.address}{self._source}" + ("" if refused else f": {detail}")
        if is_loopback(self.address) and refused:
            text += "; start one with: gpusched serve --detach"
            with contextlib.suppress(UsageError):  # of a variable that means nothing to this command
                text += " (gsrun starts one by itself)" if may_start(self.address) else ""
        return ServerUnavailable(text)
