"""The tree that xenstore keeps (docs/misc/xenstore.txt of Xen): nodes with a value, permissions and children.

A node never changes. A change makes new nodes from the changed one up to the root and shares all the others: whoever
keeps a root keeps the whole tree as it was at that moment. A transaction starts from one, and that costs nothing.

Every node has a generation, a number used once: it is renewed when the node's value, permissions or set of children
change, not when something further down does. Equal generations at one path mean: the same node, untouched.
"""

from __future__ import annotations

import errno
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import IntFlag
from typing import NamedTuple

from minivmm.errors import GuestError

CONTROL_DOMAIN = 0
ABS_PATH_MAX = 3072  # XENSTORE_ABS_PATH_MAX, bytes
REL_PATH_MAX = 2048  # XENSTORE_REL_PATH_MAX
PATH = re.compile(r"/|(/[A-Za-z0-9_@-]+)+")


class StoreError(GuestError):
    """The store refuses. `name` is the error's name, which is what goes over the wire: of xsd_errors in xs_wire.h."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.name = errno.errorcode[number]


class Access(IntFlag):
    """What one may do with a node. OWNER: change its permissions."""

    NONE = 0
    READ = 1
    WRITE = 2
    OWNER = 4


LETTERS = {Access.NONE: "n", Access.READ: "r", Access.WRITE: "w", Access.READ | Access.WRITE: "b"}
PERMISSION = re.compile(r"([nrwb])([0-9]{1,5})")


class Permission(NamedTuple):
    """One <perm-as-string>. The first of a node names its owner, and what those not named may do."""

    domid: int
    access: Access

    @classmethod
    def parse(cls, text: str) -> Permission:
        """Raises StoreError EINVAL."""
        match = PERMISSION.fullmatch(text)
        if not match or int(match[2]) > 0xFFFF:
            raise StoreError(errno.EINVAL, f"{text!r} is not a permission")
        return cls(int(match[2]), next(access for access, letter in LETTERS.items() if letter == match[1]))

    def __str__(self) -> str:
        return f"{LETTERS[self.access]}{self.domid}"


Permissions = tuple[Permission, ...]


def permissions(*texts: str) -> Permissions:
    """From the wire's form: permissions("n0", "r3"). Raises StoreError EINVAL."""
    if not texts:
        raise StoreError(errno.EINVAL, "a node needs an owner")
    return tuple(map(Permission.parse, texts))


class Node(NamedTuple):
    """One node, as it was at one moment."""

    value: bytes
    permissions: Permissions
    children: Mapping[str, Node]
    generation: int

    @property
    def owner(self) -> int:
        """The domain whose quota it counts against."""
        return self.permissions[0].domid

    def access(self, domid: int) -> Access:
        """What `domid` may do here. dom0 and the owner may do everything."""
        if domid in (CONTROL_DOMAIN, self.owner):
            return Access.READ | Access.WRITE | Access.OWNER
        named = (permission.access for permission in self.permissions[1:] if permission.domid == domid)
        return next(named, self.permissions[0].access)


class Quota(NamedTuple):
    """What a domain other than dom0 may have in the store, as in Xen's own unless its administrator says otherwise."""

    nodes: int = 1000
    value: int = 2048  # bytes
    permissions: int = 5  # of one node
    watches: int = 128
    transactions: int = 10  # at a time
    steps: int = 2048  # names in the paths that one transaction looks at and changes


def names(path: str) -> list[str]:
    """The nodes' names from below the root to the path's own. The path is checked already."""
    return path[1:].split("/") if path != "/" else []


def parent(path: str) -> str:
    """The path above; the root's is the root."""
    return path[: path.rindex("/")] or "/"


class Tree:
    """A root, and how many nodes each domain owns under it. Knows quotas; who may do what is its caller's to ask.

    Paths are absolute and well-formed.
    """

    _generations = itertools.count(1)  # of all trees: a copy must not reuse its original's numbers

    def __init__(self) -> None:
        self.root = Node(b"", permissions("n0"), {}, next(self._generations))
        self.owned: Counter[int] = Counter({CONTROL_DOMAIN: 1})

    def copy(self) -> Tree:
        """The same tree, to be changed without changing this one."""
        other = Tree.__new__(Tree)
        other.root = self.root
        other.owned = self.owned.copy()
        return other

    # Looking

    def nearest(self, path: str) -> tuple[str, Node]:
        """The node at `path`, or else the nearest one above, and where that is."""
        node, depth, wanted = self.root, 0, names(path)
        for name in wanted:
            child = node.children.get(name)
            if child is None:
                return "/" + "/".join(wanted[:depth]), node
            node, depth = child, depth + 1
        return path, node

    def find(self, path: str) -> Node | None:
        """The node at `path`."""
        where, node = self.nearest(path)
        return node if where == path else None

    def generation(self, path: str) -> int | None:
        """None where there is no node."""
        node = self.find(path)
        return node.generation if node else None

    def witnesses(self, path: str) -> list[Node]:
        """Whoever can read one of these may know of what happens at `path`: the node and its parent."""
        return [node for node in (self.find(path), self.find(parent(path))) if node]

    def walk(self, path: str) -> Iterator[tuple[str, Node]]:
        """The node at `path`, which exists, and all below it, parents first."""
        waiting = [self.nearest(path)]
        while waiting:
            where, node = waiting.pop()
            yield where, node
            waiting += [(f"{where.rstrip('/')}/{name}", child) for name, child in node.children.items()]

    # Changing

    def write(self, path: str, value: bytes, creator: int, quota: Quota) -> None:
        """Sets the value; makes the node and its missing parents, which are `creator`'s and otherwise like the nearest
        node above. Raises StoreError ENOSPC."""
        where, nearest = self.nearest(path)
        generation = next(self._generations)
        if where == path:
            self._put(path, nearest._replace(value=value, generation=generation))
            return
        missing = names(path)[len(names(where)) :]
        inherited = nearest.permissions
        if creator != CONTROL_DOMAIN:
            inherited = (inherited[0]._replace(domid=creator), *inherited[1:])
            if self.owned[creator] + len(missing) > quota.nodes:
                raise StoreError(errno.ENOSPC, f"domain {creator} has its {quota.nodes} nodes")
        node = Node(value, inherited, {}, generation)
        for name in reversed(missing[1:]):
            node = Node(b"", inherited, {name: node}, generation)
        self.owned[node.owner] += len(missing)
        self._put(where, nearest._replace(children={**nearest.children, missing[0]: node}, generation=generation))

    def set_permissions(self, path: str, new: Permissions) -> None:
        """Of a node that exists."""
        node = self.nearest(path)[1]
        self.owned[node.owner] -= 1
        self.owned[new[0].domid] += 1
        self._put(path, node._replace(permissions=new, generation=next(self._generations)))

    def remove(self, path: str) -> list[str]:
        """Takes away a node that exists and is not the root, and all below it. Returns the paths of those below."""
        gone = dict(self.walk(path))
        for node in gone.values():
            self.owned[node.owner] -= 1
        above = self.nearest(parent(path))[1]
        children = dict(above.children)
        del children[names(path)[-1]]
        self._put(parent(path), above._replace(children=children, generation=next(self._generations)))
        return list(gone)[1:]

    def _put(self, path: str, node: Node) -> None:
        """In place of the node at `path`: every node above it is made anew, with its generation as it was."""
        above = [self.root]
        for name in names(path):
            above.append(above[-1].children[name])
        for parent_node, name in zip(reversed(above[:-1]), reversed(names(path)), strict=True):
            node = parent_node._replace(children={**parent_node.children, name: node})
        self.root = node
