"""Pictures: that there are some, and what is said where there can be none."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from gpusched.scheduler.core.policy import PolicySettings
from gpusched.scheduler.simulate import plot
from gpusched.scheduler.simulate.replay import Replayed, replay, settings_for
from gpusched.scheduler.simulate.workload import LoggedJob, SimulationError, flat_pool
from simulate.logs import job
from support.server import clean_environment

JOBS = [job(1, 0, 100, 2), job(2, 10, 50, 4), job(3, 10, 20, 1), job(4, 20, 0, 1)]


def replayed(jobs: Sequence[LoggedJob], kind: str, gpus: int = 4) -> Replayed:
    settings = settings_for(PolicySettings("fifo", "easy"))
    return replay(jobs, flat_pool(gpus), settings, keep_placements=plot.wants_placements(kind, len(jobs)))


def draw(path: Path, kind: str, jobs: Sequence[LoggedJob] = JOBS, title: str = "a $title$") -> None:
    pytest.importorskip("matplotlib")
    plot.check(str(path))
    plot.draw(str(path), kind, title, jobs, replayed(jobs, kind), flat_pool(4))


def figure(kind: str, jobs: Sequence[LoggedJob] = JOBS, gpus: int = 4) -> Any:
    pytest.importorskip("matplotlib")
    return plot.figure_of(kind, "title", jobs, replayed(jobs, kind, gpus), flat_pool(gpus))


def legend(jobs: Sequence[LoggedJob]) -> list[str]:
    return [text.get_text() for legend in figure("gantt", jobs).legends for text in legend.get_texts()]


def of(user: str, number: int = 1, run: int = 10) -> LoggedJob:
    return LoggedJob(0, number, 0, run, 1, user=user)


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


ODD = ("job_$1_$2", "$", "$\\frac$", "a\x01b", "a--b-", "\ufffe", "<&>]]>", "\u4f5c\u4e1a", "_x", "a\nb")


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_texts_of_users_are_only_texts(ending: str, tmp_path: Path) -> None:
    jobs = [LoggedJob(0, text, 0, 50, 1, user=text) for text in ODD]
    path = tmp_path / f"a.{ending}"
    draw(path, "gantt", jobs, title=" ".join(ODD))
    assert path.stat().st_size > 1000
    if ending == "svg":
        ElementTree.parse(path)


def test_names_of_users_stand_as_they_are() -> None:
    assert legend([of("$a_$"), of("_apt", 2), of("a\x01b", 3), of("", 4), of("x" * 30, 5)]) == [
        *("$a_$", "_apt", "a?b", "(not told)"),
        "x" * 23 + "\u2026",
    ]
    assert legend([of("")]) == []


def test_of_many_users_those_with_the_most_work_have_a_colour() -> None:
    ten = [of(f"u{number}", number, 10 + number) for number in range(10)]
    assert legend(ten) == [f"u{number}" for number in range(10)]
    assert legend([of("a", 11, 1), *ten, of("b", 12, 100)]) == [*(f"u{n}" for n in range(1, 10)), "b", "and 2 more"]


def test_matplotlib_keeps_its_warnings_to_itself(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "\u4f5c\u4e1a.csv"
    path.write_text("job_id,submit_s,run_s,gpus\n\u4f5c\u4e1a,0,5,1\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "gpusched.scheduler", "simulate", path, "--gpus", "1", "--plot", tmp_path / "a.png"],
        env=clean_environment(),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_names_that_are_wider_than_their_bars_are_left_out() -> None:
    jobs = [job(1, 0, 1000, 1), job(2, 0, 2, 1), job(123456789012345, 0, 20, 1), job(3, 0, 50, 1)]
    (axes,) = figure("gantt", jobs).axes
    assert sorted(text.get_text() for text in axes.texts) == ["1", "3"]
    # So are those that are higher.
    (axes,) = figure("gantt", [job(1, 0, 1000, 1), job(2, 0, 1000, 100)], gpus=1000).axes
    assert [text.get_text() for text in axes.texts] == ["2"]


def test_a_job_on_neighbouring_gpus_is_one_bar() -> None:
    jobs = [job(1, 0, 10, 1), job(2, 0, 20, 1), job(3, 0, 10, 1), job(4, 0, 20, 1), job(5, 10, 50, 2)]
    (axes,) = figure("gantt", [*jobs, job(6, 70, 50, 4)]).axes
    bars = [(round(bar.get_width()), round(bar.get_height() + 0.1)) for bar in axes.patches]
    assert bars == [(10, 1), (20, 1), (10, 1), (20, 1), (50, 1), (50, 1), (50, 4)]


def test_the_longest_queue_is_drawn() -> None:
    """However short it was, and beside much more of other times."""
    jobs = [*(job(number, 0, 60, 1) for number in range(100)), job(100, 100 * 86400, 60, 1)]
    waiting, busy = figure("queue", jobs, gpus=1).axes
    assert max(waiting.lines[0].get_ydata()) == 99
    assert (waiting.get_title(loc="left"), busy.get_title(loc="left")) == ("", "")
    # And two at a time, of which one has to wait.
    jobs += [job(number, 100 * 86400 + number // 2 * 10, 3, 1) for number in range(102, 5000)]
    waiting, busy = figure("queue", jobs, gpus=1).axes
    assert max(waiting.lines[0].get_ydata()) == 99
    assert waiting.get_title(loc="left").startswith("the most at one time in each of 1,200 intervals of 2h0")
    assert busy.get_title(loc="left").startswith("the mean in each of 1,200 intervals of 2h0")


def test_whatever_goes_wrong_within_matplotlib_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("what\nwhere")

    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plot, "figure_of", fail)
    (tmp_path / "a.png").write_text("before")
    with pytest.raises(SimulationError, match=r"^cannot draw .*/a.png: ValueError: what$"):
        draw(tmp_path / "a.png", "gantt")
    assert (tmp_path / "a.png").read_text() == "before"
