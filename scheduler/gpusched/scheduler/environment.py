"""What a lease says to the work under it, as environment variables."""

from __future__ import annotations

from gpusched.scheduler.core.engine import Engine
from gpusched.scheduler.core.jobs import Job
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
        node = engine.pool.nodes[infos[0].node]
        by_number = all(info.parent < 0 for info in node.info.devices)
        visible = ",".join(str(info.index) if by_number else info.uuid for info in infos)
        out["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        out["CUDA_VISIBLE_DEVICES"] = visible
        out["NVIDIA_VISIBLE_DEVICES"] = visible
        out["GPUSCHED_NODE"] = infos[0].node
    return out
