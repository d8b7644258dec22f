"""What may be asked for at all: each refusal names the field and what is allowed."""

from __future__ import annotations

from gpusched.scheduler.core.errors import Invalid, NotSatisfiable
from gpusched.scheduler.core.jobs import JobSpec
from gpusched.scheduler.core.model import Request
from gpusched.scheduler.core.pool import Pool
from gpusched.scheduler.core.settings import MAX_PRIORITY, MIN_PRIORITY

#: Longest name, in characters.
MAX_NAME = 128
#: Most words and characters of a command that are kept for lists.
MAX_COMMAND_WORDS = 4096
MAX_COMMAND_CHARS = 65536
#: Longest time that may be asked for, in seconds: ten years.
MAX_SECONDS = 10 * 365 * 86400.0


def check(spec: JobSpec, pool: Pool) -> None:
    """Refuse what is malformed, and what this machine could not give even if all of it were idle.

    Raises:
        Invalid: a field has a value that is never allowed.
        NotSatisfiable: more than exists.
    """
    check_name(spec.name)
    check_priority(spec.priority)
    _check_command(spec.command)
    _check_seconds("time_limit", spec.time_limit)
    _check_seconds("max_wait", spec.max_wait, zero=True)
    if len(spec.request_id) > MAX_NAME or not spec.request_id.isprintable():
        raise Invalid(f"request_id: at most {MAX_NAME} printable characters", field="request_id")
    _check_request(spec.request, pool)


def check_name(name: str) -> None:
    """Raises Invalid."""
    if len(name) > MAX_NAME:
        raise Invalid(f"name: has {len(name)} characters; at most {MAX_NAME} are allowed", field="name")
    if not name.isprintable():
        raise Invalid("name: has control characters or line breaks; only printable ones are allowed", field="name")


def check_priority(priority: int) -> None:
    """Raises Invalid."""
    if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        raise Invalid(
            f"priority: {priority} is out of range; allowed are {MIN_PRIORITY} to {MAX_PRIORITY}", field="priority"
        )


def _check_command(command: tuple[str, ...]) -> None:
    if len(command) > MAX_COMMAND_WORDS or sum(map(len, command)) > MAX_COMMAND_CHARS:
        raise Invalid(
            f"command: at most {MAX_COMMAND_WORDS} words and {MAX_COMMAND_CHARS} characters are allowed here",
            field="command",
        )


def _check_seconds(field: str, value: float | None, *, zero: bool = False) -> None:
    if value is None:
        return
    if not (0 <= value <= MAX_SECONDS) or (value == 0 and not zero):
        allowed = "from 0 s" if zero else "more than 0 s"
        raise Invalid(f"{field}: {value:g} s is out of range; allowed is {allowed} up to ten years", field=field)


def _check_request(request: Request, pool: Pool) -> None:
    if request.gpus < 1:
        raise Invalid(f"resources.gpus: {request.gpus} is not allowed; ask for at least 1", field="resources.gpus")
    if request.memory_bytes < 0:
        raise Invalid("resources.gpu_memory_bytes: must not be negative", field="resources.gpu_memory_bytes")
    for field, text in (("resources.gpu_model", request.model), ("resources.node", request.node)):
        if len(text) > MAX_NAME or not text.isprintable():
            raise Invalid(f"{field}: at most {MAX_NAME} printable characters are allowed", field=field)
    if request.node and request.node not in pool.nodes:
        known = ", ".join(list(pool.nodes)[:20])
        raise NotSatisfiable(
            f"resources.node: there is no node {request.node!r}; there is {known}",
            reason="UNKNOWN_NODE",
            field="resources.node",
        )
    have = len(pool.eligible(request))
    if have >= request.gpus:
        return
    where = f" on node {request.node}" if request.node else ""
    on_node = Request(1, node=request.node)
    infos = [pool.devices[uuid].info for uuid in pool.eligible(on_node)]
    if have == 0 and infos and request.model and not any(request.model in info.model.lower() for info in infos):
        models = ", ".join(sorted({info.model for info in infos}))
        raise NotSatisfiable(
            f"resources.gpu_model: no GPU{where} is a {request.model!r}; there are: {models}",
            reason="UNKNOWN_MODEL",
            field="resources.gpu_model",
        )
    if have == 0 and infos and request.memory_bytes:
        most = max(info.memory_bytes for info in infos if request.model in info.model.lower())
        raise NotSatisfiable(
            f"resources.gpu_memory_bytes: no GPU{where} has {request.memory_bytes / 2**30:.4g} GiB; "
            f"the largest has {most / 2**30:.4g} GiB",
            field="resources.gpu_memory_bytes",
        )
    wanted = " that will do" if request.model or request.memory_bytes else ""
    raise NotSatisfiable(
        f"resources.gpus: asks for {request.gpus} GPU{'s' if request.gpus > 1 else ''}, "
        f"but there {'is' if have == 1 else 'are'} only {have}{wanted}{where}",
        field="resources.gpus",
    )
