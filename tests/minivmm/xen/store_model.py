"""What xenstore must do, said another way: a flat dictionary of paths, permissions as the strings they are written as.

An operation is ("verb", path, arguments) and answers with the error's name or a result. A transaction is a copy of the
dictionary; whether it may commit is decided from the places that changed since, each with the time of its last change.
"""

from __future__ import annotations

import re
from typing import Any

Entry = tuple[bytes, tuple[str, ...]]  # value, permissions
Nodes = dict[str, Entry]
Operation = tuple[Any, ...]

NODES, VALUE, PERMS, WATCHES, TRANSACTIONS = 4, 8, 3, 3, 2
ERRORS = {"EINVAL", "EACCES", "ENOENT", "ENOSPC", "EPERM", "EEXIST", "E2BIG", "EBUSY", "EAGAIN"}


def above(path: str) -> str:
    return path.rsplit("/", 1)[0] or "/"


def below(path: str, other: str) -> bool:
    """Whether `other` is `path` or under it."""
    return (other + "/").startswith(path.rstrip("/") + "/")


def nearest(nodes: Nodes, path: str) -> str:
    while path not in nodes:
        path = above(path)
    return path


def rights(entry: Entry, domid: int) -> set[str]:
    letters = {"n": "", "r": "r", "w": "w", "b": "rw"}
    owner, *others = entry[1]
    if domid == 0 or int(owner[1:]) == domid:
        return {"r", "w", "o"}
    for permission in others:
        if int(permission[1:]) == domid:
            return set(letters[permission[0]])
    return set(letters[owner[0]])


def absolute(domid: int, path: str) -> str | None:
    if path.startswith("@"):
        return None
    name = path if path[:1] == "/" else f"/local/domain/{domid}/{path}"
    well_formed = name == "/" or re.fullmatch(r"(/[0-9A-Za-z@_-]+)+", name, re.ASCII)
    return name if well_formed else None


class Outcome:
    """What an operation does to a dictionary: its answer, what it looked at, changed, and took along."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.looked: set[str] = set()
        self.event = ""  # the path named, when something changed
        self.gone: set[str] = set()
        self.renewed: set[str] = set()  # nodes that are not what they were


def perform(nodes: Nodes, domid: int, operation: Operation) -> Outcome:
    """Carries out one operation on `nodes`."""
    verb, path, *arguments = operation
    name = absolute(domid, path)
    if name is None:
        return Outcome("EINVAL")
    done = Outcome("OK")
    where = nearest(nodes, name)
    done.looked = {name, where}
    wanted = {"read": {"r"}, "directory": {"r"}, "get_perms": {"r"}, "set_perms": {"w", "o"}}.get(verb, {"w"})
    granted = rights(nodes[where], domid) & wanted
    if not granted or (where == name and granted != wanted):
        done.answer = "EACCES"
    elif verb in ("write", "mkdir"):
        value = arguments[0] if verb == "write" else nodes.get(name, (b"",))[0]
        done.answer = put(nodes, domid, name, where, value, done) if verb == "write" or where != name else "OK"
    elif where != name:
        done.answer = "OK" if verb == "rm" and where == above(name) else "ENOENT"
    elif verb == "read":
        done.answer = nodes[name][0]
    elif verb == "get_perms":
        done.answer = nodes[name][1]
    elif verb == "directory":
        done.answer = sorted(other.rsplit("/", 1)[1] for other in nodes if other != "/" and above(other) == name)
    elif verb == "rm":
        done.answer = take(nodes, name, done)
    else:
        done.answer = permit(nodes, domid, name, arguments[0], done)
    return done


def put(nodes: Nodes, domid: int, name: str, where: str, value: bytes, done: Outcome) -> str:
    if domid and len(value) > VALUE:
        return "ENOSPC"
    new, path = [], name
    while path != where:
        new.append(path)
        path = above(path)
    if domid and new and len(new) + sum(owner(entry) == domid for entry in nodes.values()) > NODES:
        return "ENOSPC"
    default, *others = nodes[where][1]
    inherited = (f"{default[0]}{domid or default[1:]}", *others)
    for path in new:
        nodes[path] = (b"", inherited)
    nodes[name] = (value, nodes[name][1])
    done.event, done.renewed = name, {name, *new, where} if new else {name}
    return "OK"


def take(nodes: Nodes, name: str, done: Outcome) -> str:
    if name == "/":
        return "EINVAL"
    done.event, done.gone = name, {path for path in nodes if below(name, path)} - {name}
    done.renewed = {name, above(name), *done.gone}
    for path in done.gone | {name}:
        del nodes[path]
    return "OK"


def permit(nodes: Nodes, domid: int, name: str, new: tuple[str, ...], done: Outcome) -> str:
    if not new:
        return "EINVAL"
    if domid and int(new[0][1:]) != owner(nodes[name]):
        return "EPERM"
    if domid and len(new) > PERMS:
        return "ENOSPC"
    nodes[name] = (nodes[name][0], new)
    done.event, done.renewed = name, {name}
    return "OK"


def owner(entry: Entry) -> int:
    return int(entry[1][0][1:])


class StoreModel:
    """The dictionary of now, and each domain's watches and transactions."""

    def __init__(self, domains: tuple[int, ...]) -> None:
        self.nodes: Nodes = {"/": (b"", ("n0",))}
        self.changed: dict[str, int] = {}  # when each place was last not what it had been
        self.time = 0
        self.watches: dict[int, list[tuple[str, str, bytes]]] = {domid: [] for domid in domains}
        self.transactions: dict[int, dict[int, dict[str, Any]]] = {domid: {} for domid in domains}
        self.events: dict[int, list[tuple[str, bytes]]] = {domid: [] for domid in domains}

    def operate(self, domid: int, operation: Operation, tx: int) -> Any:
        if not tx:
            before = dict(self.nodes)
            done = perform(self.nodes, domid, operation)
            self.publish(before, [done])
            return done.answer
        if tx not in self.transactions[domid]:
            return "ENOENT" if absolute(domid, operation[1]) else "EINVAL"
        transaction = self.transactions[domid][tx]
        done = perform(transaction["nodes"], domid, operation)
        transaction["looked"] |= done.looked
        transaction["log"].append((operation, done.answer))
        return done.answer

    def start(self, domid: int, number: Any) -> Any:
        """`number` is what the store answered: any that is new will do."""
        if domid and len(self.transactions[domid]) >= TRANSACTIONS:
            return "ENOSPC"
        assert isinstance(number, int)
        assert 0 < number < 1 << 32
        assert number not in self.transactions[domid]
        self.transactions[domid][number] = {
            "nodes": dict(self.nodes),
            "time": self.time,
            "looked": set(),
            "log": [],
        }
        return number

    def end(self, domid: int, tx: int, commit: bool) -> str:
        if tx not in self.transactions[domid]:
            return "ENOENT"
        transaction = self.transactions[domid].pop(tx)
        if not commit:
            return "OK"
        if any(self.changed.get(path, 0) > transaction["time"] for path in transaction["looked"]):
            return "EAGAIN"
        nodes, outcomes = dict(self.nodes), []
        for operation, answer in transaction["log"]:
            if answer == "ENOSPC":
                continue
            done = perform(nodes, domid, operation)
            if done.answer == "ENOSPC":
                return "ENOSPC"
            # Whoever made these operations now, at once, would see what the transaction saw.
            assert done.answer == answer, (operation, answer, done.answer)
            outcomes.append(done)
        before, self.nodes = self.nodes, nodes
        self.publish(before, outcomes)
        return "OK"

    def publish(self, before: Nodes, outcomes: list[Outcome]) -> None:
        """Remembers when, and tells who watches and may know."""
        self.time += 1
        for done in outcomes:
            self.changed |= dict.fromkeys(done.renewed, self.time)
        named = {done.event for done in outcomes if done.event}
        gone = {path for done in outcomes for path in done.gone}
        for domid, watches in self.watches.items():
            for path, given, token in watches:
                for event in {name for name in named if below(path, name)} | ({path} & gone):
                    if any(self.visible(nodes, event, domid) for nodes in (before, self.nodes)):
                        self.events[domid].append((self.as_given(domid, given, event), token))

    def visible(self, nodes: Nodes, path: str, domid: int) -> bool:
        return any(place in nodes and "r" in rights(nodes[place], domid) for place in (path, above(path)))

    def as_given(self, domid: int, given: str, path: str) -> str:
        return path if given[0] in "/@" else path[len(f"/local/domain/{domid}/") :]

    def watch(self, domid: int, path: str, token: bytes) -> str:
        name = path if path.startswith("@") else absolute(domid, path)
        if name is None:
            return "EINVAL"
        if any((name, token) == (there, its) for there, _, its in self.watches[domid]):
            return "EEXIST"
        if domid and len(self.watches[domid]) >= WATCHES:
            return "E2BIG"
        self.watches[domid].append((name, path, token))
        self.events[domid].append((path, token))
        return "OK"

    def unwatch(self, domid: int, path: str, token: bytes) -> str:
        name = path if path.startswith("@") else absolute(domid, path)
        if name is None:
            return "EINVAL"
        left = [watch for watch in self.watches[domid] if (watch[0], watch[2]) != (name, token)]
        if left == self.watches[domid]:
            return "ENOENT"
        self.watches[domid] = left
        return "OK"

    def die(self, domid: int) -> None:
        """Nothing is left of the domain, nor for the next of its number."""
        self.watches[domid], self.transactions[domid] = [], {}
        self.time += 1
        for path in sorted(self.nodes):
            if path in self.nodes and owner(self.nodes[path]) == domid and path != "/":
                done = Outcome("OK")
                take(self.nodes, path, done)
                self.changed |= dict.fromkeys(done.renewed, self.time)
        for path, (value, (first, *others)) in list(self.nodes.items()):
            kept = tuple(permission for permission in others if int(permission[1:]) != domid)
            if int(first[1:]) == domid:
                first = f"{first[0]}0"
            if (first, *kept) != self.nodes[path][1]:
                self.nodes[path] = (value, (first, *kept))
                self.changed[path] = self.time
