"""What a lease says to the work under it, as environment variables."""

from __future__ import annotations

from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.jobs import Job
from gpusched.scheduler.core.sharing import Grant
from gpusched.scheduler.core.states import Lease


def lease_environment(engine: Engine, job: Job, lease: Lease) -> dict[str, str]:
    """What a holder sets for its work. GPUs of several nodes have no common numbering, so then none is given."""
    infos = [engine.pool.devices[uuid].info for uuid in lease.devices if uuid in engine.pool.devices]
    out = {
        "GPUSCHED_JOB_ID": str(job.id),
        "GPUSCHED_LEASE_ID": lease.id,
        "GPUSCHED_GPUS": ",".join(lease.devices),
    }
    if len({info.node for info in infos}) == 1:
        # CUDA numbers whole GPUs; where some are divided into MIG instances, its numbers are not ours.
        by_number = engine.pool.numbered[infos[0].node]
        visible = ",".join(str(info.index) if by_number else info.uuid for info in infos)
        out["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        out["CUDA_VISIBLE_DEVICES"] = visible
        out["NVIDIA_VISIBLE_DEVICES"] = visible
        out["GPUSCHED_NODE"] = infos[0].node
    request = job.request
    if request.shared:
        out["GPUSCHED_GPU_MEMORY"] = str(request.memory_bytes)
    if request.cpus:
        out["GPUSCHED_CPUS"] = str(request.cpus)
    if request.host_bytes:
        out["GPUSCHED_MEM"] = str(request.host_bytes)
    if len(lease.devices) == 0:
        # Cores or memory alone: its work is to see no GPU, though the machine has some.
        out["CUDA_VISIBLE_DEVICES"] = out["NVIDIA_VISIBLE_DEVICES"] = ""
        if isinstance(lease.devices, Grant) and len(lease.devices.nodes) == 1:
            out["GPUSCHED_NODE"] = lease.devices.nodes[0]
    return out
