"""Pictures: that there are some, and what is said where there can be none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.simulate import plot
from gpusched.scheduler.simulate.replay import replay, settings_for
from gpusched.scheduler.simulate.workload import SimulationError, flat_pool
from simulate.logs import job

JOBS = [job(1, 0, 100, 2), job(2, 10, 50, 4), job(3, 10, 20, 1), job(4, 20, 0, 1)]


def draw(path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib")
    settings = settings_for(PolicySettings("fifo", "easy"))
    done = replay(JOBS, flat_pool(4), settings, keep_placements=plot.wants_placements(kind, len(JOBS)))
    plot.check(str(path))
    plot.draw(str(path), kind, "a $title$", JOBS, done, flat_pool(4))


@pytest.mark.parametrize("kind", ["gantt", "queue", "auto"])
def test_svg(kind: str, tmp_path: Path) -> None:
    draw(tmp_path / "a.svg", kind)
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert root.tag.endswith("svg")
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 10


def test_png(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", "queue")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_who_had_what_is_drawn_for_few_jobs_only() -> None:
    assert plot.wants_placements("auto", plot.GANTT_JOBS)
    assert not plot.wants_placements("auto", plot.GANTT_JOBS + 1)
    assert plot.wants_placements("gantt", 10**6)
    assert not plot.wants_placements("queue", 1)


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SimulationError, match=r"needs matplotlib.*: pip install 'gpusched\[plot\]'"):
        plot.check("a.svg")


def test_other_kinds_of_files_are_refused() -> None:
    with pytest.raises(SimulationError, match=r"'a.pdf' must end with .svg or .png"):
        plot.check("a.pdf")


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=r"cannot write .*: No such file or directory"):
        draw(tmp_path / "none" / "a.svg", "gantt")
