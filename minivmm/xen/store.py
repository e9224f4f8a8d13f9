"""Xenstore (docs/misc/xenstore.txt of Xen): the store, and the requests its clients may make.

A client is one connection: a domain's ring, or a tool of the control domain in this process. Watches and transactions
are a client's own. Its methods are the protocol's requests by their names; each raises StoreError with the name of the
error that the protocol gives. Paths may be relative: x/y of domain 3 is /local/domain/3/x/y.

A transaction works on the tree as it was when it began and remembers which nodes it looked at. It commits when those
are still the same ones, untouched: then its changes are made again, on the tree of now, all or none.

Calls are serialised by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from errno import E2BIG, EACCES, EAGAIN, EBUSY, EEXIST, EINVAL, ENOENT, ENOSPC, EPERM
from typing import NamedTuple

from minivmm.errors import ConfigError
from minivmm.xen.abi import XENSTORE_PAYLOAD_MAX
from minivmm.xen.store_tree import (
    ABS_PATH_MAX,
    CONTROL_DOMAIN,
    PATH,
    REL_PATH_MAX,
    Access,
    Node,
    Permissions,
    Quota,
    StoreError,
    Tree,
    names,
    parent,
)

INTRODUCE_DOMAIN = "@introduceDomain"
RELEASE_DOMAIN = "@releaseDomain"
TOKEN_MAX = XENSTORE_PAYLOAD_MAX - ABS_PATH_MAX - 2  # bytes: any event of the watch fits in a message


class Change(NamedTuple):
    """A change to the node at `path`. `apply` makes it and gives the paths of nodes below that went with it."""

    path: str
    apply: Callable[[Tree], Iterable[str]]


@dataclass(slots=True)
class Transaction:
    """Everything a client did since TRANSACTION_START."""

    base: Tree  # as it was then
    tree: Tree  # with the client's changes
    touched: set[str] = field(default_factory=set)  # paths looked at, found or not
    changes: list[Change] = field(default_factory=list)
    steps: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """A client's wish to hear of changes at `path` (absolute, or @special) and below."""

    client: Client
    path: str
    given: str  # as the client named it
    token: bytes

    def trigger(self, path: str) -> None:
        """WATCH_EVENT, with a path of the kind that the client gave."""
        base = "" if self.given == self.path else self.client.base + "/"
        self.client.event(self, path.removeprefix(base))


class Store:
    """The tree, who watches it, and which domains are known."""

    def __init__(self, quota: Quota | None = None) -> None:
        self.quota = quota or Quota()
        self.tree = Tree()
        self.introduced: set[int] = set()
        self.clients: dict[Client, None] = {}
        self.watches: dict[str, dict[Watch, None]] = {}  # by path, in the order they were set
        self.tools = Client(self, CONTROL_DOMAIN)

    def commit(self, changes: Iterable[Change]) -> None:
        """Makes the changes, all or none, and tells who watches. Raises StoreError ENOSPC."""
        before, after = self.tree, self.tree.copy()
        changed: dict[str, None] = {}
        gone: dict[str, None] = {}
        for change in changes:
            gone.update(dict.fromkeys(change.apply(after)))
            changed[change.path] = None
        self.tree = after
        for path in {**changed, **gone}:
            watches = list(self._watches(path, above=path in changed))
            witnesses = before.witnesses(path) + after.witnesses(path) if watches else []
            for watch in watches:
                if any(Access.READ in node.access(watch.client.domid) for node in witnesses):
                    watch.trigger(path)

    def _watches(self, path: str, above: bool) -> Iterator[Watch]:
        """The watches on `path`, and with `above` those that it is a child of."""
        yield from self.watches.get(path, ())
        while above and path != "/":
            path = parent(path)
            yield from self.watches.get(path, ())

    def announce(self, special: str) -> None:
        """An event without a node, for dom0 only: INTRODUCE_DOMAIN, or RELEASE_DOMAIN when a domain ends."""
        for watch in list(self.watches.get(special, ())):
            if watch.client.privileged:
                watch.trigger(special)

    def introduce(self, domid: int) -> None:
        """The store is in communication with the domain from now on."""
        self.introduced.add(domid)
        self.announce(INTRODUCE_DOMAIN)

    def release(self, domid: int) -> None:
        """The domain, which is not dom0, is no more: nor are its connections, what it owned, and what it was permitted,
        so that the next domain of that number inherits nothing. Raises ConfigError for dom0."""
        if domid == CONTROL_DOMAIN:
            raise ConfigError("the store cannot do without dom0")
        self.introduced.discard(domid)
        for client in [client for client in self.clients if client.domid == domid]:
            client.close()
        for path, node in list(self.tree.walk("/")):
            if not self.tree.find(path):
                continue  # went with a node above
            if node.owner == domid and path != "/":
                self.tools.rm(path)
            elif any(permission.domid == domid for permission in node.permissions):
                default = node.permissions[0]._replace(domid=CONTROL_DOMAIN) if path == "/" else node.permissions[0]
                others = (permission for permission in node.permissions[1:] if permission.domid != domid)
                self.tools.set_perms(path, (default, *others))
        del self.tree.owned[domid]
        self.announce(RELEASE_DOMAIN)


def _unheard(_watch: Watch, _path: str) -> None:
    """Of a client that watches nothing."""


class Client:
    """One connection of a domain. `event(watch, path)` is called for every event of its watches."""

    def __init__(self, store: Store, domid: int, event: Callable[[Watch, str], None] = _unheard) -> None:
        self.store = store
        self.domid = domid
        self.privileged = domid == CONTROL_DOMAIN
        self.base = get_domain_path(domid)
        self.event = event
        self.watches: dict[tuple[str, bytes], Watch] = {}
        self.transactions: dict[int, Transaction] = {}
        self._last_transaction = 0
        store.clients[self] = None

    def close(self) -> None:
        """The connection ends."""
        self.reset_watches()
        self.store.clients.pop(self, None)

    # Database read, write and permissions operations. `tx` is the transaction's number, 0 for none.

    def read(self, path: str, tx: int = 0) -> bytes:
        """READ."""
        return self.node(path, tx).value

    def directory(self, path: str, tx: int = 0) -> list[str]:
        """DIRECTORY: the names of the children."""
        return list(self.node(path, tx).children)

    def get_perms(self, path: str, tx: int = 0) -> Permissions:
        """GET_PERMS."""
        return self.node(path, tx).permissions

    def node(self, path: str, tx: int = 0) -> Node:
        """What the three above look at. Raises StoreError EINVAL, EACCES, ENOENT."""
        name = self._resolve(path)
        node = self._look(name, Access.READ, tx)
        if node is None:
            raise StoreError(ENOENT, f"there is no {name}")
        return node

    def write(self, path: str, value: bytes, tx: int = 0) -> None:
        """WRITE: makes what is missing of the path."""
        name = self._resolve(path)
        self._look(name, Access.WRITE, tx)
        self._write(name, value, tx)

    def mkdir(self, path: str, tx: int = 0) -> None:
        """MKDIR: leaves what is there unchanged."""
        name = self._resolve(path)
        if self._look(name, Access.WRITE, tx) is None:
            self._write(name, b"", tx)

    def rm(self, path: str, tx: int = 0) -> None:
        """RM: what is not there counts as removed when its parent is there. The root stays."""
        name = self._resolve(path)
        if self._look(name, Access.WRITE, tx) is None:
            if not self._view(tx).find(parent(name)):
                raise StoreError(ENOENT, f"there is no {parent(name)}")
            return
        if name == "/":
            raise StoreError(EINVAL, "the root cannot be removed")
        self._change(Change(name, lambda tree: tree.remove(name)), tx)

    def set_perms(self, path: str, permissions: Permissions, tx: int = 0) -> None:
        """SET_PERMS: the owner's to do, who cannot give the node away."""
        name = self._resolve(path)
        node = self._look(name, Access.WRITE | Access.OWNER, tx)
        if node is None:
            raise StoreError(ENOENT, f"there is no {name}")
        if not permissions:
            raise StoreError(EINVAL, "a node needs an owner")
        if not self.privileged:
            if permissions[0].domid != node.owner:
                raise StoreError(EPERM, f"domain {self.domid} cannot give {name} away")
            if len(permissions) > self.store.quota.permissions:
                raise StoreError(ENOSPC, f"{len(permissions)} permissions are too many for {name}")

        def apply(tree: Tree) -> Iterable[str]:
            tree.set_permissions(name, permissions)
            return ()

        self._change(Change(name, apply), tx)

    # Watches

    def watch(self, path: str, token: bytes) -> None:
        """WATCH: with an event straight away."""
        name = self._watchable(path)
        if (name, token) in self.watches:
            raise StoreError(EEXIST, f"{name} is watched with that token already")
        if not self.privileged and len(self.watches) >= self.store.quota.watches:
            raise StoreError(E2BIG, f"domain {self.domid} has its {len(self.watches)} watches")
        if len(token) > TOKEN_MAX:
            raise StoreError(E2BIG, f"a token of {len(token)} bytes")
        watch = Watch(self, name, path, token)
        self.watches[name, token] = watch
        self.store.watches.setdefault(name, {})[watch] = None
        watch.trigger(name)

    def unwatch(self, path: str, token: bytes) -> None:
        """UNWATCH."""
        watch = self.watches.pop((self._watchable(path), token), None)
        if watch is None:
            raise StoreError(ENOENT, f"{path} is not watched with that token")
        others = self.store.watches[watch.path]
        del others[watch]
        if not others:
            del self.store.watches[watch.path]

    def reset_watches(self) -> None:
        """RESET_WATCHES: transactions too."""
        for watch in list(self.watches.values()):
            self.unwatch(watch.given, watch.token)
        self.transactions.clear()

    # Transactions

    def transaction_start(self, tx: int = 0) -> int:
        """TRANSACTION_START: the number of a new one. They do not nest."""
        if tx:
            self._transaction(tx)
            raise StoreError(EBUSY, "a transaction within a transaction")
        if not self.privileged and len(self.transactions) >= self.store.quota.transactions:
            raise StoreError(ENOSPC, f"domain {self.domid} has its {len(self.transactions)} transactions")
        number = self._last_transaction
        while number == 0 or number in self.transactions:
            number = (number + 1) & 0xFFFFFFFF
        self._last_transaction = (number + 1) & 0xFFFFFFFF
        self.transactions[number] = Transaction(self.store.tree, self.store.tree.copy())
        return number

    def transaction_end(self, tx: int, commit: bool) -> None:
        """TRANSACTION_END: EAGAIN when something it looked at has changed; nothing of it is done then."""
        transaction = self._transaction(tx)
        del self.transactions[tx]
        if not commit:
            return
        base, now = transaction.base, self.store.tree
        if any(base.generation(path) != now.generation(path) for path in transaction.touched):
            raise StoreError(EAGAIN, "what the transaction looked at has changed")
        self.store.commit(transaction.changes)

    # What those have in common

    def _resolve(self, path: str) -> str:
        """The absolute path. Raises StoreError EINVAL for what is no path."""
        name = path if path.startswith("/") else f"{self.base}/{path}"
        limit = ABS_PATH_MAX if name is path else REL_PATH_MAX
        if path.startswith("@") or len(path) > limit or len(name) > ABS_PATH_MAX or not PATH.fullmatch(name):
            raise StoreError(EINVAL, f"{path[:80]!r} is not a path")
        return name

    def _watchable(self, path: str) -> str:
        """The same for a <wpath>, which may be a special one."""
        return path if path.startswith("@") and len(path) <= REL_PATH_MAX else self._resolve(path)

    def _transaction(self, tx: int) -> Transaction:
        if tx not in self.transactions:
            raise StoreError(ENOENT, f"there is no transaction {tx}")
        return self.transactions[tx]

    def _view(self, tx: int) -> Tree:
        return self._transaction(tx).tree if tx else self.store.tree

    def _look(self, path: str, need: Access, tx: int) -> Node | None:
        """The node, None when there is none. What may be known of a node that is not there is up to the nearest one
        above it. Raises StoreError EACCES."""
        where, node = self._view(tx).nearest(path)
        if tx:
            self._step(path, tx)
            self._transaction(tx).touched |= {path, where}
        granted = node.access(self.domid) & need
        if granted != need if where == path else not granted:
            raise StoreError(EACCES, f"domain {self.domid} has no access to {path}")
        return node if where == path else None

    def _write(self, path: str, value: bytes, tx: int) -> None:
        if not self.privileged and len(value) > self.store.quota.value:
            raise StoreError(ENOSPC, f"{len(value)} bytes are too long a value for {path}")

        def apply(tree: Tree) -> Iterable[str]:
            tree.write(path, value, self.domid, self.store.quota)
            return ()

        self._change(Change(path, apply), tx)

    def _change(self, change: Change, tx: int) -> None:
        if not tx:
            self.store.commit([change])
            return
        self._step(change.path, tx)
        transaction = self._transaction(tx)
        change.apply(transaction.tree)
        transaction.changes.append(change)

    def _step(self, path: str, tx: int) -> None:
        """Counts what a transaction remembers, and its commit does again. Raises StoreError ENOSPC."""
        transaction = self._transaction(tx)
        transaction.steps += len(names(path))
        if not self.privileged and transaction.steps > self.store.quota.steps:
            raise StoreError(ENOSPC, f"domain {self.domid} does too much in one transaction")


def get_domain_path(domid: int) -> str:
    """GET_DOMAIN_PATH: what relative paths of the domain are relative to."""
    return f"/local/domain/{domid}"
