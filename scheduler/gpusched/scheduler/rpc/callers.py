"""Who may do what: identities from the kernel, administrators by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc

from gpusched.scheduler.admin_token import AdminTokens
from gpusched.scheduler.core.errors import Denied, Unauthenticated
from gpusched.scheduler.core.jobs import Job
from gpusched.scheduler.core.model import Owner
from gpusched.scheduler.identity import PeerIdentifier, UnknownCaller

_HOW = "run `gpusched token` as the server's own user, and send it as `authorization: Bearer TOKEN`"


@dataclass(frozen=True, slots=True)
class Caller:
    """The user at the other end of a call; `admin` if the call carried an administrator's token."""

    owner: Owner
    admin: bool


class Callers:
    """Identifies callers and decides on rights.

    Args:
        peers: asks the kernel.
        tokens: knows administrators.
        server_uid: the server's own user.
    """

    def __init__(self, peers: PeerIdentifier, tokens: AdminTokens, server_uid: int) -> None:
        self._peers = peers
        self._tokens = tokens
        self._server_uid = server_uid

    def identify(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        """Raises Unauthenticated. Everything needed of the context is copied: it must not be touched after the call."""
        try:
            found = self._peers.identify(context.peer())
        except UnknownCaller as error:
            raise Unauthenticated(f"the kernel does not say who calls: {error}") from None
        return Caller(Owner(found.uid, found.user), self._admin(context))

    def _admin(self, context: grpc.aio.ServicerContext[Any, Any]) -> bool:
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                text = value.decode("latin-1") if isinstance(value, bytes) else value
                scheme, _, token = text.partition(" ")
                if scheme.lower() != "bearer" or self._tokens.verify(token.strip()) is None:
                    raise Unauthenticated(
                        f"authorization: the administrator's token is wrong or has expired; {_HOW}",
                        reason="WRONG_TOKEN",
                        field="authorization",
                    )
                return True
        return False

    def is_server_user(self, caller: Caller) -> bool:
        return caller.admin or caller.owner.uid == self._server_uid

    def sees_arguments(self, caller: Caller, job: Job) -> bool:
        return caller.owner.uid == job.spec.owner.uid or self.is_server_user(caller)

    def require_admin(self, caller: Caller, what: str) -> None:
        """Raises Denied."""
        if not caller.admin:
            raise Denied(f"{what} is for administrators: {_HOW}", reason="ADMIN_REQUIRED")

    def require_owner(self, caller: Caller, job: Job, what: str) -> None:
        """Raises Denied."""
        if caller.owner.uid != job.spec.owner.uid and not caller.admin:
            raise Denied(
                f"job {job.id} belongs to {job.spec.owner.name}: only {job.spec.owner.name} and administrators may "
                f"{what} it",
                reason="NOT_OWNER",
                field="job_id",
            )

    def require_priority(self, caller: Caller, priority: int) -> None:
        """Everybody may step back; only the server's own user may step ahead of everybody. Raises Denied."""
        if priority > 0 and not self.is_server_user(caller):
            raise Denied(
                f"priority: {priority} puts a job ahead of everybody's; above 0 is for the server's own user",
                reason="ADMIN_REQUIRED",
                field="priority",
            )
