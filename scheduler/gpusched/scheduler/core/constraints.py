"""What may be asked of GPUs: what is malformed, and what this machine could not give even if it were idle."""

from __future__ import annotations

from dataclasses import replace

from gpusched.scheduler.core.errors import Invalid, NotSatisfiable
from gpusched.scheduler.core.model import Placement, Request
from gpusched.scheduler.core.pool import Pool

#: Longest name, in characters.
MAX_NAME = 128
#: Most names in each list of nodes, GPUs and exclusions, and most labels.
MAX_NAMES = 256


def check_request(request: Request, pool: Pool) -> None:
    """Refuse what is malformed, and what could never be had.

    Raises:
        Invalid: a field has a value that is never allowed.
        NotSatisfiable: more than exists.
    """
    _check_form(request)
    _check_names(request, pool)
    _check_hosts(request, pool)
    have = pool.usable(request)
    if have < request.gpus:
        raise _too_few(request, pool, have)
    # On idle nodes, whole ones and a rest can always be had where there are enough GPUs at all.
    if request.per_node and pool.place_on_idle(request) is None:
        raise _wrong_shape(request, pool)
    if not request.gpus and not pool.eligible(request):
        asked = f" ({said})" if (said := describe(request)) else ""
        raise NotSatisfiable(f"resources.node: no node will do{asked}", field="resources.node")


def _check_form(request: Request) -> None:
    if request.gpus < 0 or (request.gpus == 0 and not (request.cpus or request.host_bytes)):
        raise Invalid(
            f"resources.gpus: {request.gpus} is not allowed; ask for at least 1, or for cpus or memory alone",
            field="resources.gpus",
        )
    for field, number in (
        ("resources.gpu_memory_bytes", request.memory_bytes),
        ("resources.cpus", request.cpus),
        ("resources.memory_bytes", request.host_bytes),
    ):
        if number < 0:
            raise Invalid(f"{field}: must not be negative", field=field)
    if request.shared and not request.memory_bytes:
        raise Invalid(
            "resources.gpu_memory_bytes: say how much of each GPU's memory a job takes that shares it",
            field="resources.gpu_memory_bytes",
        )
    if not request.gpus:
        _check_no_gpus(request)
    _check_words("resources.gpu_model", request.model)
    _check_words("resources.node", request.node)
    _check_words("resources.nodes", *request.nodes)
    _check_words("resources.gpu_ids", *request.gpu_ids)
    _check_words("resources.exclude", *request.exclude)
    for key, value in request.labels:
        _check_words("resources.labels", key, value)
        if not key:
            raise Invalid("resources.labels: a label has no name; give KEY=VALUE", field="resources.labels")
    for field, names in (
        ("resources.nodes", request.nodes),
        ("resources.gpu_ids", request.gpu_ids),
        ("resources.exclude", request.exclude),
        ("resources.labels", request.labels),
    ):
        if len(names) > MAX_NAMES:
            raise Invalid(f"{field}: at most {MAX_NAMES} are allowed, not {len(names)}", field=field)
    if request.per_node < 0:
        raise Invalid("resources.gpus_per_node: must not be negative", field="resources.gpus_per_node")
    if request.per_node and request.gpus % request.per_node:
        raise Invalid(
            f"resources.gpus_per_node: {request.gpus} GPU{'s' if request.gpus != 1 else ''} in all cannot be "
            f"{request.per_node} on each node; ask for {request.per_node} GPUs, or a multiple of that",
            field="resources.gpus_per_node",
        )


def _check_words(field: str, *texts: str) -> None:
    for text in texts:
        if len(text) > MAX_NAME or not text.isprintable():
            raise Invalid(f"{field}: at most {MAX_NAME} printable characters are allowed", field=field)


def _check_names(request: Request, pool: Pool) -> None:
    """Refuse names of what does not exist: they are slips of the finger."""
    known = ", ".join(list(pool.nodes)[:20])
    alone = (request.node,) if request.node else ()
    for field, names in (("resources.node", alone), ("resources.nodes", request.nodes)):
        for name in names:
            if name not in pool.nodes:
                raise NotSatisfiable(
                    f"{field}: there is no node {name!r}; there is {known}", reason="UNKNOWN_NODE", field=field
                )
    if request.node and request.nodes and request.node not in request.nodes:
        raise NotSatisfiable(
            f"resources.nodes: its work runs on node {request.node}, and can only use GPUs of that node",
            field="resources.nodes",
        )
    for name in request.gpu_ids:
        if pool.named(name) is None:
            raise NotSatisfiable(
                f"resources.gpu_ids: there is no GPU {name!r}; {_gpus_there(request, pool)}",
                reason="UNKNOWN_GPU",
                field="resources.gpu_ids",
            )
    for name in request.exclude:
        if name not in pool.nodes and pool.named(name) is None:
            raise NotSatisfiable(
                f"resources.exclude: there is no GPU or node {name!r}; there is {known}, with their GPUs by uuid, "
                "node:index, or index on the scheduler's own node",
                reason="UNKNOWN_GPU",
                field="resources.exclude",
            )
    for key, value in request.labels:
        nodes = (node.info for node in pool.nodes.values() if request.node in ("", node.info.name))
        has = {
            found
            for info in nodes
            for found in (
                info.labels.get(key),
                *(value for device in info.devices for other, value in device.labels if other == key),
            )
            if found is not None
        }
        if value not in has:
            labels = ", ".join(sorted(f"{key}={found}" for found in has)[:20])
            there = f"there is {labels}" if has else "none has a label of that name"
            where = f" on node {request.node}" if request.node else ""
            raise NotSatisfiable(
                f"resources.labels: no GPU or node{where} is labelled {key}={value}; {there}",
                reason="UNKNOWN_LABEL",
                field="resources.labels",
            )


def _gpus_there(request: Request, pool: Pool) -> str:
    """What could be named instead."""
    nodes = [node for name, node in pool.nodes.items() if request.node in ("", name)][:20]
    ranges = [f"{node.info.name}:0 to {node.info.name}:{len(node.devices) - 1}" for node in nodes if node.devices]
    return f"there is {', '.join(ranges) or 'none'} (an index alone is of the scheduler's own node)"


def _check_no_gpus(request: Request) -> None:
    for field, said in (
        ("resources.shared", request.shared),
        ("resources.gpu_memory_bytes", request.memory_bytes),
        ("resources.gpu_model", request.model),
        ("resources.gpu_ids", request.gpu_ids),
        ("resources.gpus_per_node", request.per_node),
    ):
        if said:
            raise Invalid(f"{field}: says something of GPUs, and none is asked for", field=field)


def _check_hosts(request: Request, pool: Pool) -> None:
    """Refuse more cores or memory than any one node has."""
    nodes = [node.info for name, node in pool.nodes.items() if request.node in ("", name)]
    most_cpus = max((info.cpus for info in nodes), default=0)
    most_memory = max((info.memory_bytes for info in nodes), default=0)
    where = f"node {request.node}" if request.node else "the largest node"
    if request.cpus > most_cpus:
        raise NotSatisfiable(
            f"resources.cpus: asks for {request.cpus} cores; {where} has {most_cpus}", field="resources.cpus"
        )
    if request.host_bytes > most_memory:
        raise NotSatisfiable(
            f"resources.memory_bytes: asks for {request.host_bytes / 2**30:.4g} GiB; "
            f"{where} has {most_memory / 2**30:.4g} GiB",
            field="resources.memory_bytes",
        )


def _too_few(request: Request, pool: Pool, have: int) -> NotSatisfiable:
    """Why there are not enough, by the condition that is most likely to be mistaken."""
    where = f" on node {request.node}" if request.node else ""
    on_node = Request(1, node=request.node)
    infos = [pool.devices[uuid].info for uuid in pool.eligible(on_node)]
    if have == 0 and infos and request.model and not any(request.model in info.model.lower() for info in infos):
        models = ", ".join(sorted({info.model for info in infos}))
        return NotSatisfiable(
            f"resources.gpu_model: no GPU{where} is a {request.spelled_model or request.model!r}; there are: {models}",
            reason="UNKNOWN_MODEL",
            field="resources.gpu_model",
        )
    if have == 0 and infos and request.memory_bytes:
        fitting = [info for info in infos if request.model in info.model.lower()]
        most = max(pool.rules.capacity(info) if request.shared else info.memory_bytes for info in fitting)
        if most < request.memory_bytes:
            has = "has room for shares of" if request.shared else "has"
            return NotSatisfiable(
                f"resources.gpu_memory_bytes: no GPU{where} {has} {request.memory_bytes / 2**30:.4g} GiB; "
                f"the largest has {most / 2**30:.4g} GiB",
                field="resources.gpu_memory_bytes",
            )
    asked = describe(replace(request, gpus=1, node="", per_node=0, placement=Placement.PACK))
    wanted = " that will do" if asked else ""
    # The common ones speak for themselves; of several rarer ones it must be said what they come to.
    said = f" ({asked})" if any(_selection(request)) or request.counted else ""
    return NotSatisfiable(
        f"resources.gpus: asks for {request.gpus} GPU{'s' if request.gpus > 1 else ''}, "
        f"but there {'is' if have == 1 else 'are'} only {have}{wanted}{where}{said}",
        field="resources.gpus",
    )


def _wrong_shape(request: Request, pool: Pool) -> NotSatisfiable:
    eligible = pool.eligible(request)
    most = max(sum(device.uuid in eligible for device in node.devices) for node in pool.nodes.values())
    number = sum(
        sum(device.uuid in eligible for device in node.devices) >= request.per_node for node in pool.nodes.values()
    )
    there = f"only {number} ha{'s' if number == 1 else 've'} that many" if number else f"the largest has {most}"
    return NotSatisfiable(
        f"resources.gpus_per_node: asks for {request.per_node} on each of {request.gpus // request.per_node} nodes; "
        f"{there}",
        field="resources.gpus_per_node",
    )


def _selection(
    request: Request,
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[tuple[str, str], ...]]:
    return request.nodes, request.gpu_ids, request.exclude, request.labels


def describe(request: Request) -> str:
    """All that a request asks of its GPUs but their number, in words; empty if nothing."""
    wants = []
    if request.model:
        wants.append(f"of model {request.model!r}")
    if request.shared:
        wants.append(f"shared, {request.memory_bytes / 2**30:.4g} GiB of each")
    elif request.memory_bytes:
        wants.append(f"with at least {request.memory_bytes / 2**30:.4g} GiB each")
    if request.node:
        wants.append(f"on node {request.node}")
    if request.nodes:
        wants.append(f"on node{'s' if len(request.nodes) > 1 else ''} {_some(request.nodes)}")
    if request.gpu_ids:
        wants.append(f"of GPU{'s' if len(request.gpu_ids) > 1 else ''} {_some(request.gpu_ids)}")
    if request.exclude:
        wants.append(f"without {_some(request.exclude)}")
    if request.labels:
        wants.append(f"labelled {_some([f'{key}={value}' for key, value in request.labels])}")
    if request.per_node:
        wants.append(f"{request.per_node} on each node")
    if request.placement is Placement.SPREAD:
        wants.append("spread over nodes")
    if request.placement is Placement.CONSOLIDATE:
        wants.append("on one node, or on whole ones")
    if host := describe_host(request):
        wants.append(host)
    return " ".join(wants)


def describe_host(request: Request) -> str:
    """What a request asks of each node's host, in words; empty if nothing."""
    parts = []
    if request.cpus:
        parts.append(f"{request.cpus} core{'s' if request.cpus > 1 else ''}")
    if request.host_bytes:
        parts.append(f"{request.host_bytes / 2**30:.4g} GiB of host memory")
    if not parts:
        return ""
    return f"with {' and '.join(parts)}" + (" on each node" if request.gpus > 1 else "")


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
