"""Who has used how much of the GPUs lately, and what share of them is due to whom.

Formulas of Slurm's classic fair-share factor (`PriorityFlags=NO_FAIR_TREE`, its documentation "Classic Fairshare
Algorithm"): F = 2^(-U_E / S). S is a user's share of all, down the tree; U_E the usage charged to him, of which a
part is that of his siblings: U_E = U + (U_E,parent - U) * shares / shares of all siblings, and U_E = U below the root.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isnan, log

from gpusched.scheduler.core.errors import Invalid

#: Shares of a user of whom nothing was said.
DEFAULT_SHARES = 1.0
#: What shares may be.
LEAST_SHARES, MOST_SHARES = 1e-6, 1e9
_LN2 = log(2.0)


class UsageBook:
    """GPU-seconds of each user, of which the older count less.

    Args:
        half_life: seconds in which past use counts half.
    """

    def __init__(self, half_life: float) -> None:
        self.half_life = half_life
        #: Per user: decayed GPU-seconds, when that was reckoned, and GPUs held since then.
        self._users: dict[str, tuple[float, float, float]] = {}

    def used(self, user: str, now: float) -> float:
        """Decayed GPU-seconds of a user, running work included."""
        value, at, gpus = self._users.get(user, (0.0, now, 0.0))
        return self._decayed(value, gpus, now - at)

    def change(self, user: str, gpus: float, now: float) -> None:
        """A user holds so many GPUs more (or less) from now on."""
        known = self._users.get(user)
        if known is None:
            self._users[user] = (0.0, now, gpus)
            return
        value, at, held = known
        if now > at and (value or held):
            value = self._decayed(value, held, now - at)
        self._users[user] = (value, now, held + gpus)

    def put(self, user: str, used: float, now: float) -> None:
        """Take over what an earlier run of the server knew: so many decayed GPU-seconds at this time."""
        _, _, held = self._users.get(user, (0.0, now, 0.0))
        self._users[user] = (used, now, held)

    def set_half_life(self, half_life: float, now: float) -> None:
        """Let past use count half after so many seconds from now on; until now it was as it was."""
        for user in self._users:
            self.change(user, 0.0, now)
        self.half_life = half_life

    def users(self) -> list[str]:
        """All of whom something is known."""
        return list(self._users)

    def _decayed(self, value: float, gpus: float, passed: float) -> float:
        if passed <= 0:
            return value
        left: float = 2.0 ** (-passed / self.half_life)
        # What is being used decays from the moment it is used: the integral of gpus * 2^(-t / half_life).
        return value * left + gpus * (1.0 - left) * self.half_life / _LN2


@dataclass(slots=True)
class _Node:
    name: str
    shares: float
    parent: _Node | None = None
    children: dict[str, _Node] = field(default_factory=dict)


class ShareTree:
    """Accounts and users with their shares.

    Args:
        shares: "user" or "account/user" or "account" (or deeper) to its shares, from `LEAST_SHARES` to `MOST_SHARES`.
            Users that are not named stand below the root with one share; an account may be called like one of them.

    Raises:
        Invalid: shares that are no number or out of that range, or a name twice.
    """

    def __init__(self, shares: Mapping[str, float] | None = None) -> None:
        self._root = _Node("", 1.0)
        self._users: dict[str, _Node] = {}
        for path, number in (shares or {}).items():
            if isnan(number) or number <= 0:
                raise Invalid(f"policy.shares: {path}={number:g}; shares must be above 0", field="policy.shares")
            if not LEAST_SHARES <= number <= MOST_SHARES:
                allowed = f"{LEAST_SHARES:g} to {MOST_SHARES:g}"
                raise Invalid(f"policy.shares: {path}={number:g}; allowed is {allowed}", field="policy.shares")
            names = path.split("/")
            if not all(names):
                raise Invalid(f"policy.shares: {path!r} has an empty name", field="policy.shares")
            node = self._root
            for name in names:
                node = node.children.setdefault(name, _Node(name, DEFAULT_SHARES, node))
            node.shares = number
        for leaf in _leaves(self._root):
            if leaf is self._root:
                continue
            if leaf.name in self._users:
                raise Invalid(f"policy.shares: user {leaf.name} is named twice", field="policy.shares")
            self._users[leaf.name] = leaf

    def account(self, user: str) -> str:
        """Path of the account that a user belongs to, empty for none."""
        node = self._users.get(user)
        names = []
        while node is not None and node.parent is not None and node.parent is not self._root:
            node = node.parent
            names.append(node.name)
        return "/".join(reversed(names))

    def factors(self, used: Mapping[str, float]) -> dict[str, float]:
        """The fair-share factor of each user, from 1 (has used nothing) down to 0.

        Args:
            used: decayed GPU-seconds by user; every user whose factor is wanted must be there.
        """
        for user in used:
            if user not in self._users:
                # By a key that no account has: one may be called like the user.
                self._users[user] = self._root.children[f"{user}/"] = _Node(user, DEFAULT_SHARES, self._root)
        total = sum(used.values())
        if total <= 0:
            return dict.fromkeys(used, 1.0)
        out: dict[str, float] = {}
        self._walk(self._root, 1.0, None, used, total, out)
        return out

    def _walk(
        self,
        node: _Node,
        share: float,
        charged: float | None,
        used: Mapping[str, float],
        total: float,
        out: dict[str, float],
    ) -> None:
        siblings = sum(child.shares for child in node.children.values())
        for child in node.children.values():
            part = child.shares / siblings
            own = _usage(child, used) / total
            effective = own if charged is None else own + (charged - own) * part
            if child.children:
                self._walk(child, share * part, effective, used, total, out)
            elif child.name in used:
                due = share * part  # 0 only if a deep tree's shares are beyond what numbers can tell
                out[child.name] = 2.0 ** (-effective / due) if due else float(effective <= 0)


def _usage(node: _Node, used: Mapping[str, float]) -> float:
    if not node.children:
        return used.get(node.name, 0.0)
    return sum(_usage(child, used) for child in node.children.values())


def _leaves(node: _Node) -> Iterable[_Node]:
    if not node.children:
        yield node
    for child in node.children.values():
        yield from _leaves(child)
