"""dom0 and two domains in any order of requests, with transactions, watches and permissions, against the model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from errno import EAGAIN
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from minivmm.xen.store import Client, Store, Watch
from minivmm.xen.store_tree import Access, Node, Permissions, Quota, StoreError, Tree, parent, permissions
from tests.minivmm.xen.store_model import NODES, PERMS, TRANSACTIONS, VALUE, WATCHES, StoreModel

DOMAINS = (0, 1, 2)
QUOTA = Quota(NODES, VALUE, PERMS, WATCHES, TRANSACTIONS, steps=10_000)

# What requests are made of: places that meet, and some that are none.
NUMBERS: dict[str, list[Any]] = {
    "caller": [0, 1, 1, 2, 2],
    "guest": [1, 2],
    "path": [
        *("x", "x/y", "x/y/z", "x/w", "/a", "/a/b", "/a/b/c", "/a/b/c/d", "/a/e") * 2,
        *("/", "/local/domain/1/x", "/local/domain/2", "/local/domain/2/x/y", "w", "/local/domain/1"),
        *("", "/a/", "//a", "/a\xe9", "@releaseDomain", "x\n"),
    ],
    "wpath": ["/", "/a", "/a/b", "/a/b/c", "x", "x/y", "/local/domain/1/x", "@releaseDomain", "/a/", "/local/domain/2"],
    "token": [b"one", b"two"],
    "value": [b"", b"1", b"2\0", b"12345678", b"123456789"],
    "perms": [
        *(
            ("n1",),
            ("n2",),
            ("n1", "b2"),
            ("n2", "r1"),
            ("r0",),
            ("b0",),
            ("w0", "r1"),
            ("n0", "r1", "b2"),
            ("b1", "n2"),
        ),
        *((), ("b1", "r2", "r3", "r4"), ("n0",), ("r1", "w2"), ("w2", "b1")),
    ],
    "looked": ["x", "x/y", "/a", "/a/b", "/a/b/c"],
    "other": ["x/w/v", "/a/b/f/g", "/a/e", "/a/b", "/a/b/c", "/local/domain/1/x/y", "/local/domain/2/x"],
    "verb": ["write", "rm", "mkdir"],
    "within": [0, 0, 0, 1, 1, 2],  # which of the open transactions, 0 for none
    "commit": [True, True, True, False],
    "seldom": list(range(13)),
}
CALLS: dict[str, tuple[str, ...]] = {
    "read": ("caller", "path", "within"),
    "directory": ("caller", "path", "within"),
    "get_perms": ("caller", "path", "within"),
    "write": ("caller", "path", "within", "value"),
    "mkdir": ("caller", "path", "within"),
    "rm": ("caller", "path", "within", "seldom"),
    "set_perms": ("caller", "path", "within", "perms", "seldom"),
    "watch": ("caller", "wpath", "token"),
    "unwatch": ("caller", "wpath", "token"),
    "start": ("caller",),
    "end": ("caller", "within", "commit"),
    "interleave": ("caller", "guest", "path", "looked", "other", "verb"),
    "reset_watches": ("caller", "seldom"),
    "die": ("guest", "seldom"),
    "furnish": ("seldom",),
}
drawn = {name: st.sampled_from(values) for name, values in NUMBERS.items()}


def step(call: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The rule that draws what CALLS says."""
    strategies: dict[str, Any] = {name: drawn[name] for name in CALLS[call]}
    decorator: Callable[[Callable[..., None]], Callable[..., None]] = rule(**strategies)
    return decorator


class StoreMachine(RuleBasedStateMachine):
    """The real store and the model, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(QUOTA)
        self.model = StoreModel(DOMAINS)
        self.events: dict[int, list[tuple[str, bytes]]] = {domid: [] for domid in DOMAINS}
        self.clients = {domid: self.connect(domid) for domid in DOMAINS}

    def connect(self, domid: int) -> Client:
        def heard(watch: Watch, path: str) -> None:
            self.events[domid].append((path, watch.token))

        return Client(self.store, domid, heard)

    @initialize()
    def begin(self) -> None:
        self.furnish(0)

    @step("furnish")
    def furnish(self, seldom: int) -> None:
        """Not from nothing: a home each, and a place where they meet."""
        if seldom > 1:
            return
        for path, perms in (
            *((f"/local/domain/{domid}", ("n0", f"r{domid}")) for domid in (1, 2)),
            *((f"/local/domain/{domid}/x", (f"n{domid}",)) for domid in (1, 2)),
            *(("/a", ("b0",)), ("/a/b", ("n1", "b2"))),
        ):
            self.mkdir(0, path, 0)
            self.set_perms(0, path, 0, perms, 0)

    def call(self, request: Callable[[], Any]) -> Any:
        """The answer, or the error's name. Anything else it raises fails the test."""
        try:
            answer = request()
        except StoreError as error:
            return error.name
        return "OK" if answer is None else answer

    def transaction(self, caller: int, within: int) -> int:
        there = sorted(self.model.transactions[caller])
        return there[within % len(there)] if within and there else 0

    def operate(self, verb: str, caller: int, path: str, within: int, *arguments: Any) -> None:
        tx = self.transaction(caller, within)
        given = [permissions(*arguments[0]) if arguments[0] else ()] if verb == "set_perms" else list(arguments)
        real = self.call(lambda: getattr(self.clients[caller], verb)(path, *given, tx))
        if verb == "directory" and isinstance(real, list):
            real = sorted(real)
        elif verb == "get_perms" and isinstance(real, tuple):
            real = tuple(map(str, real))
        assert real == self.model.operate(caller, (verb, path, *arguments), tx), (verb, caller, path, tx)

    @step("read")
    def read(self, caller: int, path: str, within: int) -> None:
        self.operate("read", caller, path, within)

    @step("directory")
    def directory(self, caller: int, path: str, within: int) -> None:
        self.operate("directory", caller, path, within)

    @step("get_perms")
    def get_perms(self, caller: int, path: str, within: int) -> None:
        self.operate("get_perms", caller, path, within)

    @step("write")
    def write(self, caller: int, path: str, within: int, value: bytes) -> None:
        self.operate("write", caller, path, within, value)

    @step("mkdir")
    def mkdir(self, caller: int, path: str, within: int) -> None:
        self.operate("mkdir", caller, path, within)

    @step("rm")
    def rm(self, caller: int, path: str, within: int, seldom: int) -> None:
        if seldom < 6:
            self.operate("rm", caller, path, within)

    @step("set_perms")
    def set_perms(self, caller: int, path: str, within: int, perms: tuple[str, ...], seldom: int) -> None:
        if seldom < 8:
            self.operate("set_perms", caller, path, within, perms)

    @step("watch")
    def watch(self, caller: int, wpath: str, token: bytes) -> None:
        real = self.call(lambda: self.clients[caller].watch(wpath, token))
        assert real == self.model.watch(caller, wpath, token)

    @step("unwatch")
    def unwatch(self, caller: int, wpath: str, token: bytes) -> None:
        real = self.call(lambda: self.clients[caller].unwatch(wpath, token))
        assert real == self.model.unwatch(caller, wpath, token)

    @step("start")
    def start(self, caller: int) -> None:
        real = self.call(self.clients[caller].transaction_start)
        assert real == self.model.start(caller, real)

    @step("end")
    def end(self, caller: int, within: int, commit: bool) -> None:
        tx = self.transaction(caller, within)
        real = self.call(lambda: self.clients[caller].transaction_end(tx, commit))
        assert real == self.model.end(caller, tx, commit)

    @step("interleave")
    def interleave(self, caller: int, guest: int, path: str, looked: str, other: str, verb: str) -> None:
        """A transaction of one, and a change by another (or by itself) before it ends."""
        tx = self.call(self.clients[caller].transaction_start)
        assert tx == self.model.start(caller, tx)
        if tx == "ENOSPC":
            return
        within = sorted(self.model.transactions[caller]).index(tx) + len(self.model.transactions[caller])
        self.operate("directory", caller, looked, within)
        self.operate("write", caller, path, within, b"in")
        self.operate("write", caller, looked + "/of", within, b"in")
        self.operate(verb, guest, other, 0, *([b"out"] if verb == "write" else []))
        self.end(caller, within, commit=True)

    @step("reset_watches")
    def reset_watches(self, caller: int, seldom: int) -> None:
        if seldom == 0:
            self.clients[caller].reset_watches()
            self.model.watches[caller], self.model.transactions[caller] = [], {}

    @step("die")
    def die(self, guest: int, seldom: int) -> None:
        """The domain ends, and another of its number connects. What its end tells others is not predicted."""
        if seldom == 0:
            self.store.release(guest)
            self.model.die(guest)
            self.clients[guest] = self.connect(guest)
            for events in (*self.events.values(), *self.model.events.values()):
                events.clear()

    @invariant()
    def the_tree_is_the_models(self) -> None:
        real = {path: (node.value, tuple(map(str, node.permissions))) for path, node in self.store.tree.walk("/")}
        assert real == self.model.nodes

    @invariant()
    def a_transaction_sees_its_own_tree(self) -> None:
        for domid, client in self.clients.items():
            expected = self.model.transactions[domid]
            assert client.transactions.keys() == expected.keys()
            for number, transaction in client.transactions.items():
                assert {path: node.value for path, node in transaction.tree.walk("/")} == {
                    path: value for path, (value, _) in expected[number]["nodes"].items()
                }

    @invariant()
    def who_watches_has_heard_of_it(self) -> None:
        for domid in DOMAINS:
            assert Counter(self.events[domid]) == Counter(self.model.events[domid]), f"domain {domid}"

    @invariant()
    def nodes_are_counted_for_their_owners(self) -> None:
        owners = Counter(node.owner for _, node in self.store.tree.walk("/"))
        assert owners == +self.store.tree.owned


def walk(seed: int, steps: int = 500) -> None:
    """A random walk without hypothesis: cheaper a step, for the mistakes below."""
    choose = random.Random(seed).choice
    machine = StoreMachine()
    machine.begin()
    for _ in range(steps):
        call = choose(list(CALLS))
        getattr(machine, call)(*[choose(NUMBERS[name]) for name in CALLS[call]])
        machine.the_tree_is_the_models()
        machine.a_transaction_sees_its_own_tree()
        machine.who_watches_has_heard_of_it()
        machine.nodes_are_counted_for_their_owners()


CHECKS = settings(max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
WALKS = 16


def hunt() -> None:
    for seed in range(WALKS):
        walk(seed)


def test_any_sequence_of_requests_does_what_the_model_says() -> None:
    run_state_machine_as_test(StoreMachine, settings=CHECKS)


def test_the_walks_that_find_the_mistakes_find_none_without() -> None:
    hunt()


def _everyone_may_do_everything(_self: Node, _domid: int) -> Access:
    return Access.READ | Access.WRITE | Access.OWNER


def _others_may_what_the_last_says(self: Node, domid: int) -> Access:
    return self.permissions[-1].access if domid not in (0, self.owner) else Access.READ | Access.WRITE | Access.OWNER


def _dom0_is_like_others(self: Node, domid: int) -> Access:
    granted: Access = ORIGINAL["access"](self, domid or 99)
    return granted


def _the_removed_below_are_not_told(self: Tree, path: str) -> list[str]:
    ORIGINAL["remove"](self, path)
    return []


def _removal_leaves_the_parent_as_it_was(self: Tree, path: str) -> list[str]:
    generation = self.find(parent(path)).generation  # type: ignore[union-attr]
    gone: list[str] = ORIGINAL["remove"](self, path)
    self._put(parent(path), self.nearest(parent(path))[1]._replace(generation=generation))
    return gone


def _what_is_removed_still_counts(self: Tree, path: str) -> list[str]:
    owned = self.owned.copy()
    gone: list[str] = ORIGINAL["remove"](self, path)
    self.owned = owned
    return gone


def _the_owner_is_inherited(self: Tree, path: str, value: bytes, _creator: int, quota: Quota) -> None:
    ORIGINAL["write"](self, path, value, 0, quota)


def _no_quota(self: Tree, path: str, value: bytes, creator: int, quota: Quota) -> None:
    ORIGINAL["write"](self, path, value, creator, quota._replace(nodes=10_000))


def _a_value_keeps_its_generation(self: Tree, path: str, value: bytes, creator: int, quota: Quota) -> None:
    before = self.generation(path)
    ORIGINAL["write"](self, path, value, creator, quota)
    if before:
        self._put(path, self.nearest(path)[1]._replace(generation=before))


def _a_copy_shares_its_counts(self: Tree) -> Tree:
    other: Tree = ORIGINAL["copy"](self)
    other.owned = self.owned
    return other


def _a_copy_is_none(self: Tree) -> Tree:
    return self


def _everything_is_visible(_self: Tree, _path: str) -> list[Node]:
    return [Node(b"", permissions("b0"), {}, 0)]


def _the_parent_shows_nothing(self: Tree, path: str) -> list[Node]:
    node = self.find(path)
    return [node] if node else []


def _nothing_conflicts(self: Client, tx: int, commit: bool) -> None:
    if tx in self.transactions:
        self.transactions[tx].touched.clear()
    ORIGINAL["transaction_end"](self, tx, commit)


def _everything_conflicts(self: Client, tx: int, commit: bool) -> None:
    if tx in self.transactions and commit and self.transactions[tx].base is not self.store.tree:
        del self.transactions[tx]
        raise StoreError(EAGAIN, "something has changed")
    ORIGINAL["transaction_end"](self, tx, commit)


def _only_what_is_found_is_remembered(self: Client, path: str, need: Access, tx: int) -> Node | None:
    node: Node | None = ORIGINAL["_look"](self, path, need, tx)
    if tx and node is None:
        self.transactions[tx].touched -= {self._view(tx).nearest(path)[0]}
    return node


def _a_missing_node_is_no_secret(self: Client, path: str, need: Access, tx: int) -> Node | None:
    if self._view(tx).find(path) is None and need == Access.READ:
        return None
    node: Node | None = ORIGINAL["_look"](self, path, need, tx)
    return node


def _a_node_is_given_away(self: Client, path: str, given: Permissions, tx: int = 0) -> None:
    try:
        ORIGINAL["set_perms"](self, path, given, tx)
    except StoreError as error:
        if error.name != "EPERM":
            raise
        self.store.tree.set_permissions(self._resolve(path), given)


def _permissions_outlive_their_domain(self: Store, domid: int) -> None:
    perms = {path: node.permissions for path, node in self.tree.walk("/") if node.owner != domid}
    ORIGINAL["release"](self, domid)
    for path, before in perms.items():
        if self.tree.find(path):
            self.tree.set_permissions(path, before)


def _events_are_absolute(self: Watch, path: str) -> None:
    self.client.event(self, path)


ORIGINAL: dict[str, Callable[..., Any]] = {
    **{name: getattr(Tree, name) for name in ("remove", "write", "copy")},
    **{name: getattr(Client, name) for name in ("transaction_end", "_look", "set_perms")},
    "access": Node.access,
    "release": Store.release,
}
MISTAKES: list[tuple[type, str, Callable[..., Any]]] = [
    (Node, "access", _everyone_may_do_everything),
    (Node, "access", _others_may_what_the_last_says),
    (Node, "access", _dom0_is_like_others),
    (Tree, "remove", _the_removed_below_are_not_told),
    (Tree, "remove", _removal_leaves_the_parent_as_it_was),
    (Tree, "remove", _what_is_removed_still_counts),
    (Tree, "write", _the_owner_is_inherited),
    (Tree, "write", _no_quota),
    (Tree, "write", _a_value_keeps_its_generation),
    (Tree, "copy", _a_copy_shares_its_counts),
    (Tree, "copy", _a_copy_is_none),
    (Tree, "witnesses", _everything_is_visible),
    (Tree, "witnesses", _the_parent_shows_nothing),
    (Client, "transaction_end", _nothing_conflicts),
    (Client, "transaction_end", _everything_conflicts),
    (Client, "_look", _only_what_is_found_is_remembered),
    (Client, "_look", _a_missing_node_is_no_secret),
    (Client, "set_perms", _a_node_is_given_away),
    (Store, "release", _permissions_outlive_their_domain),
    (Watch, "trigger", _events_are_absolute),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake[2].__name__)
def test_a_seeded_mistake_is_found(
    mistake: tuple[type, str, Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*mistake)
    with pytest.raises((AssertionError, KeyError, StoreError)):
        hunt()
