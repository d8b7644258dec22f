"""What a grant may set in the environment of those who hold it. Light: gsrun imports it before the command starts."""

from __future__ import annotations

from collections.abc import Mapping

_ALLOWED_PREFIXES = ("CUDA_", "NVIDIA_", "GPUSCHED_")


def lease_variables(granted: Mapping[str, str], address: str) -> dict[str, str]:
    """The variables of a lease: those of the grant that concern GPUs, and where its scheduler is.

    A server must not set anything else in its users' processes.

    Args:
        granted: what the scheduler said.
        address: the scheduler's, `host:port`.
    """
    variables = {name: value for name, value in granted.items() if name.startswith(_ALLOWED_PREFIXES)}
    variables["GPUSCHED_URL"] = address
    return variables
