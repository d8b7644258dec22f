"""gsrun's command line. Parsed by hand: argparse and what it imports would be a tenth of the start-up time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from gpusched.client.usage import UsageError

MAX_GPUS = 1_000_000
LOWEST_PRIORITY, HIGHEST_PRIORITY = -100, 100
MAX_NAME_CHARACTERS = 128

USAGE: Final = "usage: gsrun [-n GPUS] [--time 2h] [options] [--] command [arguments…]"

HELP: Final = f"""{USAGE}

Wait for GPUs in the scheduler's queue, then run the command on them. The GPUs are free again when it ends.

  -n, --gpus GPUS       how many GPUs, all or nothing (default 1; 0 with --cpus or --mem alone)
  --gpu-memory SIZE     each GPU with at least this much memory: 40G, 512M
  --shared              have only that much of each GPU, beside others of yours that do the same
  --cpus N, --mem SIZE  cores and memory of the host on each node: 8, 32G (counted, not enforced)
  --gpu-model TEXT      each GPU's model name contains this: H100, a100-sxm
  --gpu-id GPU[,GPU]    only these GPUs, by index or uuid; without -n, all of them
  --exclude GPU[,GPU]   not these
  --constraint KEY=VAL  only where there is this label (mig=3g.20gb, numa=0, disk=nvme); may be repeated
  --node NAME[,NAME]    only these nodes; --gpus-per-node N: so many on each
  --pack, --spread      with several nodes: the fullest that holds it (default), or evenly over the emptiest
  --time DURATION       end the command after this long: 2h, 90m, 1-12:00:00
  --estimate DURATION   how long it is expected to take (nothing ends at it; `--policy sjf` goes by it)
  --preemptible         it may be ended for a job of a higher tier, if the scheduler does that
  --signal NAME@TIME    what the command is sent so long before that, or before the time limit: USR1@60s
  --priority P          {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}, higher comes first (default 0; above 0: privileged)
  --name NAME           shown in lists (default: the command's name)
  --max-wait DURATION   give up after waiting this long
  --immediate           do not wait: fail if the GPUs are not free now
  --dry-run             only tell what would happen
  --leave-children      leave running what the command leaves behind when it ends
  --on-lost kill|keep   when the scheduler takes the GPUs back: end the command (default), or let it go on
  --detach              do not wait: hand the command to the scheduler as a batch job, and print the job's id
  --url HOST:PORT       the scheduler's address (default $GPUSCHED_URL, else 127.0.0.1:9123)
  -v, --verbose         say more     -q, --quiet   say nothing but errors
  --version             tell the version and exit
  -h, --help            this text

Exit status: the command's; 128+n if signal n killed it; 124 at the time limit; 126, 127 if the command cannot be run or
found. When it did not run: 2 wrong request, 69 no scheduler, 75 no GPUs now, 77 not allowed, 125 gsrun itself failed.
While the command runs, 76: the lease was lost, 143: somebody cancelled the job. More in docs/gsrun.md.
"""


class Misuse(Exception):
    """The command line makes no sense as a whole; the text says why."""


class HelpAsked(Exception):
    """`--help` or `--version`; `text` is the answer, empty for the version."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Options:
    """What the command line says. Durations in seconds, sizes in bytes; 0 where nothing was said."""

    def __init__(self) -> None:
        self.gpus = 1
        self.gpu_memory_bytes = 0
        self.gpu_model = ""
        self.where: dict[str, Any] = {}  # attributes of `where.Where`
        self.priority = 0
        self.name = ""
        self.time_limit = 0.0
        self.max_wait = 0.0
        self.estimate = 0.0
        self.preemptible = False
        self.signal = ""
        self.immediate = False
        self.dry_run = False
        self.leave_children = False
        self.on_lost = "kill"
        self.detach = False
        self.verbose = False
        self.quiet = False
        self.url = ""
        self.command: list[str] = []
        self.given: set[str] = set()  # the long names of all options that were given


def parse(words: Sequence[str]) -> Options:
    """The options from the words of the command line, the program's name left out.

    Raises:
        UsageError: naming the option and what is allowed.
        Misuse: if an option is unknown or lacks its value, or there is no command.
        HelpAsked: for `--help` and `--version`.
    """
    options = Options()
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        for name, attached in _split(word):
            _take(options, name, attached, rest)
    options.command = rest
    if options.verbose and options.quiet:
        raise Misuse("-v and -q together make no sense; give one of them")
    if not rest and not options.dry_run:
        raise Misuse(f"say which command to run\n{USAGE}")
    if rest and not rest[0]:
        raise Misuse("the command's first word is empty; give the name of a program")
    if options.detach:
        _check_detach(options)
    if not options.gpus and not (options.where.get("cpus") or options.where.get("mem")):
        raise Misuse("-n 0 asks for nothing; give a number of GPUs, or --cpus or --mem beside it")
    if "--gpu-id" in options.given and "--gpus" not in options.given:
        options.gpus = len(options.where["gpu_ids"])
    if not options.name and rest:
        base = rest[0].rstrip("/").rpartition("/")[2] or rest[0]
        options.name = "".join(char if char.isprintable() else "?" for char in base[:MAX_NAME_CHARACTERS])
    return options


def _check_detach(options: Options) -> None:
    for name in _NOT_WITH_DETACH:
        if name in options.given:
            raise Misuse(f"--detach and {name} together make no sense: {_NOT_WITH_DETACH[name]}")


def _split(word: str) -> Iterator[tuple[str, str | None]]:
    """`--name=value`, `-n2`, `-vn2` as option and attached value (None: there is none)."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        yield name, value if equals else None
        return
    letters = word[1:]
    while letters:
        name, letters = f"-{letters[0]}", letters[1:]
        if name in _WITH_VALUE:
            yield name, letters or None
            return
        yield name, None


def _take(options: Options, name: str, attached: str | None, rest: list[str]) -> None:
    name = _LONG.get(name, name)
    if setter := _WITH_VALUE.get(name):
        if attached is None and not rest:
            raise Misuse(f"{name} needs a value\n{USAGE}")
        setter(options, rest.pop(0) if attached is None else attached)
    elif name in _PLACEMENTS:
        _refuse_value(name, attached)
        if options.where.setdefault("placement", name[2:]) != name[2:]:
            raise Misuse("--pack and --spread together make no sense; give one of them")
    elif name == "--shared":
        _refuse_value(name, attached)
        options.where["shared"] = True
    elif name in _FLAGS:
        _refuse_value(name, attached)
        setattr(options, name[2:].replace("-", "_"), True)
    elif name == "--help":
        raise HelpAsked(HELP)
    elif name == "--version":
        raise HelpAsked("")
    else:
        raise Misuse(f"there is no option {name} (`gsrun --help` lists those that are; `--` ends them)\n{USAGE}")
    options.given.add(name)


def _refuse_value(name: str, attached: str | None) -> None:
    if attached is not None:
        raise Misuse(f"{name} takes no value, and was given {attached!r}")


def _whole_number(field: str, text: str, least: int, most: int, allowed: str) -> int:
    digits = text.removeprefix("-").removeprefix("+")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9 or not least <= int(text) <= most:
        raise UsageError(field, text, allowed)
    return int(text)


def _set_gpus(options: Options, text: str) -> None:
    options.gpus = _whole_number("-n", text, 0, MAX_GPUS, f"give a whole number of GPUs, 0 to {MAX_GPUS:,}")


def _set_cpus(options: Options, text: str) -> None:
    options.where["cpus"] = _whole_number("--cpus", text, 1, MAX_GPUS, "give a whole number of cores, 1 or more")


def _set_mem(options: Options, text: str) -> None:
    from gpusched.client.units import parse_size

    options.where["mem"] = parse_size(text, "--mem")


def _set_priority(options: Options, text: str) -> None:
    allowed = f"give a whole number from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}"
    options.priority = _whole_number("--priority", text, LOWEST_PRIORITY, HIGHEST_PRIORITY, allowed)


def _set_name(options: Options, text: str) -> None:
    if not text or len(text) > MAX_NAME_CHARACTERS or not text.isprintable():
        allowed = f"give 1 to {MAX_NAME_CHARACTERS} characters, without line breaks or control characters"
        raise UsageError("--name", text, allowed)
    options.name = text


def _set_model(options: Options, text: str) -> None:
    if not text or len(text) > MAX_NAME_CHARACTERS or not text.isprintable():
        raise UsageError("--gpu-model", text, "give a part of a model's name, such as H100 or a100-sxm")
    options.gpu_model = text


def _set_memory(options: Options, text: str) -> None:
    from gpusched.client.units import parse_size

    options.gpu_memory_bytes = parse_size(text, "--gpu-memory")


def _set_names(options: Options, field: str, name: str, text: str, allowed: str) -> None:
    from gpusched.client.where import names

    options.where[name] = tuple(dict.fromkeys((*options.where.get(name, ()), *names(field, text, allowed))))


def _set_nodes(options: Options, text: str) -> None:
    from gpusched.client.where import NODES_ALLOWED

    _set_names(options, "--node", "nodes", text, NODES_ALLOWED)


def _set_gpu_ids(options: Options, text: str) -> None:
    from gpusched.client.where import GPUS_ALLOWED

    _set_names(options, "--gpu-id", "gpu_ids", text, GPUS_ALLOWED)


def _set_exclude(options: Options, text: str) -> None:
    from gpusched.client.where import EXCLUDE_ALLOWED

    _set_names(options, "--exclude", "exclude", text, EXCLUDE_ALLOWED)


def _set_constraint(options: Options, text: str) -> None:
    from gpusched.client.where import label

    options.where["labels"] = (*options.where.get("labels", ()), label("--constraint", text))


def _set_per_node(options: Options, text: str) -> None:
    allowed = f"give a whole number of GPUs, 1 to {MAX_GPUS:,}"
    options.where["gpus_per_node"] = _whole_number("--gpus-per-node", text, 1, MAX_GPUS, allowed)


def _seconds(field: str, text: str) -> float:
    from gpusched.client.units import DURATION_ALLOWED, parse_duration

    seconds = parse_duration(text, field)
    if seconds <= 0:
        raise UsageError(field, text, f"{DURATION_ALLOWED}, more than 0")
    return seconds


def _set_time(options: Options, text: str) -> None:
    options.time_limit = _seconds("--time", text)


def _set_estimate(options: Options, text: str) -> None:
    options.estimate = _seconds("--estimate", text)


def _set_signal(options: Options, text: str) -> None:
    from gpusched.client.units import parse_signal

    parse_signal(text, "--signal")
    options.signal = text


def _set_max_wait(options: Options, text: str) -> None:
    options.max_wait = _seconds("--max-wait", text)


def _set_on_lost(options: Options, text: str) -> None:
    if text not in ("kill", "keep"):
        raise UsageError("--on-lost", text, "give kill or keep")
    options.on_lost = text


def _set_url(options: Options, text: str) -> None:
    from gpusched.client.address import server_address

    try:
        options.url = server_address(text or " ")  # empty would mean the default
    except UsageError as error:
        raise UsageError("--url", text, error.allowed) from None


_WITH_VALUE: Final[dict[str, Callable[[Options, str], None]]] = {
    "-n": _set_gpus,
    "--gpus": _set_gpus,
    "--gpu-memory": _set_memory,
    "--cpus": _set_cpus,
    "--mem": _set_mem,
    "--gpu-model": _set_model,
    "--gpu-id": _set_gpu_ids,
    "--exclude": _set_exclude,
    "--constraint": _set_constraint,
    "--node": _set_nodes,
    "--gpus-per-node": _set_per_node,
    "--time": _set_time,
    "--priority": _set_priority,
    "--name": _set_name,
    "--estimate": _set_estimate,
    "--signal": _set_signal,
    "--max-wait": _set_max_wait,
    "--on-lost": _set_on_lost,
    "--url": _set_url,
}
_FLAGS: Final = frozenset(
    {"--immediate", "--dry-run", "--leave-children", "--preemptible", "--detach", "--verbose", "--quiet"}
)
_PLACEMENTS: Final = ("--pack", "--spread")
_NOT_WITH_DETACH: Final = {
    "--immediate": "a batch job starts when it is its turn",
    "--max-wait": "a batch job waits for as long as it takes (`gpusched cancel` ends the wait)",
    "--leave-children": "what a batch job's command leaves behind is always ended",
    "--on-lost": "a batch job's command never runs without its lease",
}
_LONG: Final = {"-n": "--gpus", "-v": "--verbose", "-q": "--quiet", "-h": "--help"}
