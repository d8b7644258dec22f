import io
import sys
import types
from datetime import UTC, datetime, timedelta

import pytest

from gpusched.client import notebook, ticket
from gpusched.client.lease import BaseLease
from gpusched.client.views import AllocatedGpu, QueueUpdate, Reason


def place(position, message="needs 2 GPUs", ago=None):
    at = datetime.now(UTC) - timedelta(seconds=ago) if ago is not None else None
    return QueueUpdate("7", position, 9, Reason(message=message), at)


def test_describe():
    text = notebook.describe(place(2, ago=125))
    assert text == "gpusched: job 7 is number 2 of 9 in the queue: needs 2 GPUs (waiting 2m05s)"
    assert "\x1b" not in notebook.describe(place(1, "evil \x1b[2J\n"))


def test_plain_lines_once_per_change(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    line = notebook.default_status_line()
    assert type(line) is notebook.StatusLine
    for position in (3, 3, 2):
        line.update(place(position, ago=100))
        line.tick()
    line.close()
    assert sys.stderr.getvalue().splitlines() == [
        "gpusched: job 7 is number 3 of 9 in the queue: needs 2 GPUs",
        "gpusched: job 7 is number 2 of 9 in the queue: needs 2 GPUs",
    ]


def test_a_terminal_gets_one_line_that_goes_away(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    line = notebook.default_status_line()
    line.update(place(2, "x" * 200))
    line.update(place(1))
    line.close()
    written = sys.stderr.getvalue()
    assert "\n" not in written
    assert all(len(part.split("\x1b")[0]) < 80 for part in written.split("\r"))
    assert written.endswith("\r\x1b[K")
    monkeypatch.setenv("TERM", "dumb")
    assert type(notebook.default_status_line()) is notebook.StatusLine


def test_a_notebook_gets_a_display(monkeypatch):
    shown = []

    class Handle:
        def update(self, value):
            shown.append(value)

    def display(value, display_id):
        shown.append(value)
        return Handle()

    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(HTML=str, display=display))
    line = notebook.default_status_line()
    line.update(place(2, "<script>"))
    line.update(place(1))
    line.close()
    assert len(shown) == 3
    assert "&lt;script&gt;" in shown[0]
    assert "<script>" not in shown[0]
    assert "the wait is over" in shown[2]


def test_a_display_that_fails_is_no_matter(monkeypatch):
    def display(value, display_id):
        raise RuntimeError("the browser is gone")

    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(HTML=str, display=display))
    line = notebook.NotebookLine()
    line.update(place(2))
    line.close()


@pytest.mark.parametrize("line", [notebook.StatusLine, notebook.TerminalLine])
@pytest.mark.parametrize("error", [OSError(28, "full"), ValueError("I/O operation on closed file")])
def test_a_line_that_cannot_be_written_is_no_matter(monkeypatch, line, error):
    class Broken(io.StringIO):
        def write(self, text):
            raise error

    for stream in (Broken(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        shown = line()
        shown.update(place(2))
        shown.close()
        ticket.say("a word")


def test_without_stderr_nothing_is_printed_elsewhere(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    ticket.say("a word")
    notebook.StatusLine().update(place(2))
    assert capsys.readouterr().out == ""


def test_terminal_ipython_is_no_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace()))
    assert not notebook.in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert not notebook.in_notebook()


def test_a_lease_shows_itself():
    lease = BaseLease(
        lease_id="l", job_id="7", address="a:1", gpus=(AllocatedGpu("GPU-<x>", 3, "n", "H100", 80 * 2**30),), env={}
    )
    assert repr(lease) == "<Lease of job 7: GPU 3 (held)>"
    assert "80 GiB" in lease._repr_html_()
    cores = BaseLease(lease_id="l", job_id="7", address="a:1", gpus=(), env={})
    assert cores._repr_html_() == "<b>gpusched</b> job 7 (held): no GPU"
    assert "GPU-&lt;x&gt;" in lease._repr_html_()
    assert len(lease) == 1
