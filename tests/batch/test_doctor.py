"""`gpusched doctor`: says that all is well, and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from batch.box import Box, Gate
from support.simulation import set_gpu
from support.waiting import wait_until

NewBox = Callable[..., Box]


def wrong(box: Box) -> list[tuple[str, str]]:
    """What it finds to be wrong, by area."""
    done = box.quick("doctor", "--json")
    findings = json.loads(done.stdout)["findings"]
    assert {each["area"] for each in findings} >= {"store", "queue", "devices"}, "each is looked at"
    bad = [(each["area"], each["message"]) for each in findings if not each["ok"]]
    assert done.returncode == (1 if bad else 0)
    return bad


@pytest.mark.slow
def test_doctor(new_box: NewBox, gate: Gate) -> None:
    box = new_box("4")
    box.submit(gate.words)
    box.submit("true", held=True)
    text = box.good("doctor")
    assert [line.split()[:2] for line in text.splitlines()] == [["ok", "store"], ["ok", "queue"], ["ok", "devices"]]
    assert "1 running and 1 waiting jobs agree" in text and "all 4 GPUs are in service" in text
    assert box.quick("doctor", "-q").stdout == b""

    box.quick("drain", "3", "--reason", "its fan")
    set_gpu(box.server.address, 2, fault="Xid 79: it has fallen off the bus")
    wait_until(lambda: len(wrong(box)) == 2, what="a sick GPU is seen")
    found = dict(enumerate(sorted(wrong(box))))
    assert found[0][0] == found[1][0] == "devices"
    assert "GPU 2" in found[0][1] and "Xid 79" in found[0][1]
    assert "GPU 3" in found[1][1] and "drained: its fan" in found[1][1]
    done = box.cli("doctor")
    assert done.returncode == 1 and done.stdout.count("WRONG  devices") == 2
    box.quick("pause", "--reason", "lunch")
    assert ("server", "scheduling is paused: lunch") in wrong(box)
    for argv in (["resume"], ["undrain", "3"]):
        box.quick(*argv)
    set_gpu(box.server.address, 2, fault="")
    box.quick("undrain", "2")
    wait_until(lambda: not wrong(box), what="all is well again")

    # The store: one page of it is overwritten, behind the server's back.
    path = box.server.state_dir / "state.db"
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    (area, message), *_ = wrong(box)
    assert area == "store" and "is damaged" in message
    gate.open()
