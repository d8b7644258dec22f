"""`gpusched gpus --topology`: which GPUs of a node are connected by what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpusched.client.cli.output import Mode, Output, document
from gpusched.client.cli.session import Session
from gpusched.client.cli.text import clean

# By what is left of a score when its NVLinks are counted.
_PCIE = {60: "BRD", 50: "PIX", 40: "PXB", 30: "PHB", 20: "CPU", 10: "SYS"}
_LEGEND = (
    "NVn: n NVLinks. Over PCIe: BRD one board, PIX one switch, PXB several switches, PHB one host bridge, "
    "CPU one processor, SYS different processors. -: not known, or no connection"
)


def show_topology(session: Session, output: Output, node: str) -> int:
    """Print a table of each GPU by each for all nodes, or one."""
    import gpusched.v1.scheduler_pb2 as pb

    nodes = [
        each
        for each in session.call(session.scheduler.ListNodes, pb.ListNodesRequest()).nodes
        if node in ("", each.name)
    ]
    if output.mode is Mode.JSON:
        output.json({"nodes": [document(each) for each in nodes]})
        return 0
    if not nodes:
        output.note(f"there is no node '{node}'")
        return 0
    gpus = session.call(session.scheduler.ListGpus, pb.ListGpusRequest(node=node)).gpus
    lines: list[str] = []
    for each in nodes:
        lines += [f"{clean(each.name)}:", *matrix(each, [gpu for gpu in gpus if gpu.node == each.name]), ""]
    output.lines([*lines, _LEGEND] if any(each.links for each in nodes) else lines[:-1])
    return 0


def matrix(node: Any, gpus: Sequence[Any]) -> list[str]:
    """A node's GPUs by each other, as lines."""
    if not node.links:
        return [f"  {len(gpus)} GPUs, connected alike, or how is not known"]
    rows = [["", *(str(gpu.index) for gpu in gpus), "NUMA"]]
    for gpu, links in zip(gpus, node.links, strict=False):
        words = ["X" if number == gpu.index else _word(score) for number, score in enumerate(links.scores)]
        rows.append([str(gpu.index), *words, str(gpu.numa_node) if gpu.HasField("numa_node") else "-"])
    width = max(len(word) for row in rows for word in row)
    return ["  " + " ".join(word.rjust(width) for word in row) for row in rows]


def _word(score: int) -> str:
    return f"NV{score // 100}" if score >= 100 else _PCIE.get(score, "-")
