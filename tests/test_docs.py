"""The documentation is true: links, names, flags, tables made from code, examples that are run, and the demo.

`python tests/test_docs.py` writes the generated tables anew.
"""

from __future__ import annotations

import ast
import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpusched.client import errors as client_errors
from gpusched.client.cli.main import COMMANDS
from gpusched.client.gsrun import exits, options
from gpusched.scheduler import config
from gpusched.scheduler.core import admission, constraints, states
from gpusched.scheduler.core import effects as engine_effects
from gpusched.scheduler.core import events as engine_events
from gpusched.scheduler.core import settings as engine_settings
from gpusched.scheduler.rpc import errors as rpc_errors
from gpusched.scheduler.rpc import query_service, server
from gpusched.v1 import admin_pb2, scheduler_pb2, simulation_pb2
from support.server import SOURCE_ROOTS, Server, clean_environment, free_port

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/**/*.md")]
)
#: With examples that are run.
OUR_PAGES = [ROOT / name for name in ("README.md", "AGENTS.md", "docs/protocol.md", "docs/batch.md")]

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def on_each_page(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("page", PAGES, ids=name_of)(test)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """What is left without the blocks of code."""
    return FENCE.sub("", text)


# -- tables made from code --------------------------------------------------------------------------------------------


def first_sentence(text: str | None) -> str:
    sentence = (text or "").strip().split(". ")[0].split(".\n")[0].removesuffix(".")
    return re.sub(r" \([A-Z_]{4,}[^)]*\)", "", sentence)


def errors_table() -> str:
    rows = ["| status | exception of `gpusched.client` | meaning |", "|---|---|---|"]
    names = [code.name for code in rpc_errors.CODES.values()]
    for name in [*names, "UNIMPLEMENTED"]:
        kind = client_errors._BY_CODE[name]
        rows.append(f"| `{name}` | `{kind.__name__}` | {first_sentence(kind.__doc__)} |")
    by_reason = [
        f"`{kind.__name__}` for reason `{reason}`"
        for reason, kind in client_errors._BY_REASON.items()
        if kind not in client_errors._BY_CODE.values()
    ]
    return "\n".join(rows) + f"\n\nFiner than the status: {', '.join(by_reason)}."


def limits_table() -> str:
    known = engine_settings.Settings()
    years = admission.MAX_SECONDS / 365 / 86400
    rows = [
        ("a request", f"{server.MAX_MESSAGE // 1024} KiB"),
        ("`name`, `request_id`, `gpu_model`, `node`", f"{constraints.MAX_NAME} printable characters"),
        ("`nodes`, `gpu_ids`, `exclude`, `labels`", f"{constraints.MAX_NAMES} of each, likewise"),
        ("`priority`", f"{engine_settings.MIN_PRIORITY} to {engine_settings.MAX_PRIORITY}"),
        ("`resources.gpus`", "1 to as many as there are that will do; 0 only with `cpus` or `memory_bytes`"),
        ("`command`", f"{admission.MAX_COMMAND_WORDS} words, {admission.MAX_COMMAND_CHARS} characters"),
        ("`time_limit`, `max_wait`", f"{years:g} years"),
        ("`page_size`", f"{query_service.MAX_PAGE}"),
        ("an answer with jobs", f"{query_service.MAX_ANSWER >> 20} MiB; more come in further pages or messages"),
        ("ended jobs in memory", f"{known.keep_ended}; older ones are read from the store, up to `--keep`"),
        ("an error's text", f"{rpc_errors.MAX_TEXT} bytes"),
    ]
    return "\n".join(["| what | at most |", "|---|---|", *(f"| {what} | {most} |" for what, most in rows)])


GENERATED: dict[str, tuple[str, Callable[[], str]]] = {
    "states": ("docs/architecture.md", states.moves_table),
    "options": ("docs/operations.md", config.options_markdown),
    "errors": ("docs/protocol.md", errors_table),
    "limits": ("docs/protocol.md", limits_table),
}


def with_tables(page: str, text: str) -> str:
    """A page as it should be."""
    for name, (where, table) in GENERATED.items():
        if where == page:
            begin, end = f"<!-- begin generated: {name} -->", f"<!-- end generated: {name} -->"
            before, found_begin, rest = text.partition(begin)
            _, found_end, after = rest.partition(end)
            assert found_begin and found_end, f"{page} has no place for the table {name}"
            text = f"{before}{begin}\n{table().strip()}\n{end}{after}"
    return text


@pytest.mark.parametrize("page", sorted({page for page, _ in GENERATED.values()}))
def test_tables_made_from_code_are_up_to_date(page: str) -> None:
    assert with_tables(page, text_of(page)) == text_of(page), "run: python tests/test_docs.py"


# -- names ------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")
        number = sum(anchor == plain or anchor.startswith(f"{plain}-") for anchor in found)
        found.add(f"{plain}-{number}" if plain in found else plain)
    return found


@on_each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT) and file.exists(), f"{target}: there is no {file}"
        if anchor:
            assert anchor in anchors(file), f"{target}: {file.name} has no such heading"


@functools.cache
def functions_of(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@on_each_page
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    named = r"\b((?:tests|scripts|docs|benchmarks|examples)/[\w./-]*\.(?:py|sh|md|service))(?:::(\w+))?"
    for path, function in re.findall(named, page.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file(), f"there is no {path}"
        assert not function or function in functions_of(ROOT / path), f"{path} has no {function}"


def test_every_promise_names_a_test() -> None:
    table = text_of("docs/architecture.md").partition("| promise | shown by |")[2].partition("\n\n")[0]
    rows = table.splitlines()[2:]
    assert len(rows) > 8
    for row in rows:
        assert re.search(r"tests/\w+/\w+\.py::test_\w+", row), f"no test is named: {row}"


@functools.cache
def help_of(command: str) -> str:
    """The help of `gpusched COMMAND`."""
    done = subprocess.run(
        [sys.executable, "-m", "gpusched.client.cli", *command.split(), "--help"],
        capture_output=True,
        text=True,
        env=clean_environment(COLUMNS="300"),
        check=True,
        timeout=30,
    )
    return done.stdout


@functools.cache
def all_flags() -> set[str]:
    """Every flag that anything of ours has."""
    texts = [options.HELP, help_of(""), *(help_of(name) for name in COMMANDS), help_of("sim gpu")]
    texts += [file.read_text(encoding="utf-8") for file in [*ROOT.glob("scripts/*.sh"), *ROOT.glob("benchmarks/*.py")]]
    return set(re.findall(r"--[a-z][a-z-]+", "\n".join(texts)))


def code_of(text: str) -> list[str]:
    """All that is written as code, a line each."""
    lines = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    return lines + INLINE.findall(prose(text))


def calls_of(line: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of ours in a line of code, with the words that are theirs."""
    for part in re.split(r"\$\(|[|;&()`\"]|(?:^|\s)[$>#](?=\s)", line):
        words = part.split()
        while words and re.fullmatch(r"[A-Z_]+=\S*|sudo|env", words[0]):
            words.pop(0)
        if words and words[0] in ("gsrun", "gpusched"):
            yield words[0], words[1:]


def known_flags(program: str, words: list[str]) -> str:
    """The help that has all flags which this call may have. Fails the test for a command that there is not."""
    names = [word for word in words if not word.startswith("-")]
    if program == "gsrun":
        return options.HELP
    if not names or not re.fullmatch(r"[a-z][a-z-]*", names[0]):
        return "\n".join(all_flags())  # `gpusched COMMAND --help`
    assert names[0] in COMMANDS, f"there is no command {names[0]}"
    return help_of("sim gpu" if names[:2] == ["sim", "gpu"] else names[0]) + help_of("")


@pytest.mark.slow
@on_each_page
def test_commands_and_flags_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for line in code_of(text):
        for program, words in calls_of(line):
            known = known_flags(program, words)
            for word in itertools.takewhile(lambda word: word != "--", words):
                flag = re.match(r"--[a-z][a-z-]+", word)
                assert flag is None or re.search(rf"{flag[0]}(?![\w-])", known), f"{program} has no {flag[0]}: {line}"
    for code in INLINE.findall(prose(text)):
        flag = re.match(r"--[a-z][a-z-]+(?=$|[ =])", code)
        if flag and page.name != "comparison.md":
            assert flag[0] in all_flags(), f"nothing has {flag[0]}"


#: Set by our own scripts and for them; told where those are.
_OF_SCRIPTS = {"GPUSCHED_PROTO_VENV"}


def variables_in(text: str) -> set[str]:
    return set(re.findall(r"\bGPUSCHED_[A-Z]+(?:_[A-Z]+)*\b", text))


def test_variables_are_those_of_the_code() -> None:
    sources = [*(file for root in SOURCE_ROOTS for file in Path(root).rglob("*.py")), *ROOT.glob("scripts/*.sh")]
    read, told, tested = (
        set().union(*(variables_in(file.read_text(encoding="utf-8")) for file in files))
        for files in (sources, PAGES, (ROOT / "tests").rglob("*.py"))
    )
    assert told <= read | tested, f"told, and nothing reads them: {sorted(told - read - tested)}"
    assert read - _OF_SCRIPTS <= told, f"read, and told nowhere: {sorted(read - _OF_SCRIPTS - told)}"


def test_every_call_is_told() -> None:
    page = text_of("docs/protocol.md")
    for file in (scheduler_pb2, admin_pb2, simulation_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert f"`{method.name}`" in page, f"{service.name}.{method.name} is not in docs/protocol.md"


def test_every_reason_is_told() -> None:
    files = (ROOT / "scheduler").rglob("*.py")
    sources = "\n".join(file.read_text(encoding="utf-8") for file in files if "store" not in file.parts)
    reasons = set(re.findall(r'reason(?: = |=)"([A-Z_]+)"', sources)) | set(rpc_errors.ENDINGS)
    reasons -= {"FAILED"}  # of the base class, which nobody raises
    assert len(reasons) > 10
    page = text_of("docs/protocol.md")
    untold = sorted(reason for reason in reasons if f"`{reason}`" not in page)
    assert not untold, f"not in docs/protocol.md: {untold}"


def test_every_event_and_effect_is_told() -> None:
    page = text_of("docs/architecture.md")
    kinds = [*engine_events.Event.__args__, *engine_effects.Effect.__args__]
    untold = [kind.__name__ for kind in kinds if f"`{kind.__name__}`" not in page]
    assert not untold, f"not in docs/architecture.md: {untold}"


@pytest.mark.parametrize("page", ["AGENTS.md", "docs/gsrun.md"])
def test_gsruns_own_exit_codes_are_told(page: str) -> None:
    rows = re.findall(r"^\| ([0-9, ]+) \|", text_of(page), re.MULTILINE)
    told = {int(number) for row in rows for number in re.findall(r"\d+", row)}
    own = {value for name, value in vars(exits).items() if name.isupper()}
    assert own <= told, f"not told: {sorted(own - told)}"


# -- examples that are run --------------------------------------------------------------------------------------------


def blocks_to_run(page: Path, *, buf: bool) -> list[str]:
    """Bash for the blocks of a page that are marked `run`, in order."""
    script = []
    for info, block in FENCE.findall(page.read_text(encoding="utf-8")):
        language, *marks = info.split() or [""]
        if "run" in marks and ("buf" in marks) == buf:
            script.append(f"python - <<'END_OF_EXAMPLE'\n{block}END_OF_EXAMPLE\n" if language == "python" else block)
    return script


def run_blocks(blocks: list[str], port: int, env: dict[str, str], directory: Path) -> str:
    """Run them in one shell; what they printed. Fails where one of them fails."""
    script = "set -euo pipefail\n" + "\n".join(blocks).replace("127.0.0.1:9123", f"127.0.0.1:{port}")
    out = directory / "out"
    with out.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=directory,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(90)
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(10)
    printed = out.read_text(errors="replace")
    assert status == 0, f"status {status}:\n{printed}"
    return printed


def environment_of_examples(port: int, state_dir: Path) -> dict[str, str]:
    path = [str(Path(sys.executable).parent), str(ROOT / ".venvs/buf/node_modules/.bin"), os.environ["PATH"]]
    return clean_environment(
        PATH=os.pathsep.join(path), GPUSCHED_PORT=str(port), GPUSCHED_STATE_DIR=str(state_dir), GPUSCHED_AUTOSTART="0"
    )


@pytest.mark.slow
def test_the_first_five_minutes(tmp_path: Path) -> None:
    port = free_port()
    env = environment_of_examples(port, tmp_path / "state")
    try:
        printed = run_blocks(blocks_to_run(ROOT / "README.md", buf=False), port, env, tmp_path)
    finally:
        subprocess.run(
            ["gpusched", "stop"],
            env=env,
            executable=shutil.which("gpusched", path=env["PATH"]),
            check=False,
            timeout=40,
        )
    assert "my GPU is 0" in printed
    assert "would wait, 1st in the queue: needs 1 GPU, 0 free; GPU 0,1 held by" in printed
    assert "is number 1 of 1 in the queue" in printed
    assert "my turn" in printed
    assert "CANCELLED" in printed and "COMPLETED" in printed


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in OUR_PAGES if page.name != "README.md"], ids=name_of)
def test_examples_run(page: Path, tmp_path: Path) -> None:
    blocks = blocks_to_run(page, buf=False)
    assert blocks
    with Server("2") as running:
        run_blocks(blocks, running.port, environment_of_examples(running.port, running.state_dir), tmp_path)


@pytest.mark.slow
def test_examples_with_buf_run(tmp_path: Path) -> None:
    blocks = blocks_to_run(ROOT / "README.md", buf=True)
    assert blocks
    with Server("2") as running:
        env = environment_of_examples(running.port, running.state_dir)
        if shutil.which("buf", path=env["PATH"]) is None:
            pytest.skip("buf is not installed (npm install --prefix .venvs/buf @bufbuild/buf)")
        printed = run_blocks(blocks, running.port, env, tmp_path)
    for expected in ("gpusched.v1.Scheduler/Acquire", '"service": "gpusched"', '"startsNow": true', "SERVING"):
        assert expected in printed
    assert '"granted"' in printed and '"CUDA_VISIBLE_DEVICES": "0"' in printed


def test_examples_are_python_and_shell() -> None:
    """Those that are not run at least parse."""
    for page in PAGES:
        for info, block in FENCE.findall(page.read_text(encoding="utf-8")):
            language = info.split()[0] if info.split() else ""
            if language == "python":
                compile(block, name_of(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            elif language == "sh":
                done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
                assert done.returncode == 0, f"{name_of(page)}: {done.stderr}\n{block}"


# -- the demo ---------------------------------------------------------------------------------------------------------


def demo_environment(tmp_path: Path) -> dict[str, str]:
    prefix = Path(sys.prefix)
    if not (prefix / ".gpusched-dev").exists():
        pytest.skip("these tests do not run in the environment that scripts/test.sh makes")
    (tmp_path / "tmp").mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"GPUSCHED_VENV": str(prefix), "TMPDIR": str(tmp_path / "tmp"), "TERM": "dumb"}


def processes_with(text: str) -> list[str]:
    """Command lines of living processes that have a text in their environment or arguments."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit() and int(directory.name) != os.getpid():
            try:
                words = (directory / "cmdline").read_bytes()
                if words and text.encode() in words + (directory / "environ").read_bytes():
                    found.append(words.replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return found


@pytest.mark.slow
def test_the_demo_runs_to_its_end(tmp_path: Path) -> None:
    env = demo_environment(tmp_path)
    began = time.monotonic()
    done = subprocess.run(
        [ROOT / "scripts/demo.sh", "--simulated"],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert time.monotonic() - began < 30, "too long for a demo"
    killed = re.search(r"kill -9 of ann's gsrun\. (\d+) ms later cem's command ran, on GPU 0\.", done.stdout)
    assert killed and int(killed[1]) < 1000, done.stdout
    assert "gsrun: 1st of 1 in the queue" in done.stdout
    assert "is dead too" in done.stdout
    assert list((tmp_path / "tmp").iterdir()) == []
    assert processes_with(str(tmp_path)) == []


@pytest.mark.slow
def test_the_demo_cleans_up_when_it_is_interrupted(tmp_path: Path) -> None:
    env = demo_environment(tmp_path)
    with (tmp_path / "out").open("wb") as out:
        demo = subprocess.Popen(
            [ROOT / "scripts/demo.sh", "--simulated"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 30
    while b"in the queue" not in (tmp_path / "out").read_bytes():
        assert demo.poll() is None and time.monotonic() < deadline, (tmp_path / "out").read_text()
        time.sleep(0.05)
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.wait(30) == 130, (tmp_path / "out").read_text()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert processes_with(str(tmp_path)) == []


if __name__ == "__main__":
    for each in sorted({page for page, _ in GENERATED.values()}):
        (ROOT / each).write_text(with_tables(each, text_of(each)), encoding="utf-8")
