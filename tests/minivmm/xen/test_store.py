"""Xenstore, one property a test; any order of requests is test_store_model.py's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from minivmm.errors import ConfigError
from minivmm.xen import store, store_ring, store_tree
from minivmm.xen.store import INTRODUCE_DOMAIN, RELEASE_DOMAIN, TOKEN_MAX, Client, Store
from minivmm.xen.store_domains import introduce, remove
from minivmm.xen.store_tree import Permission, Quota, StoreError, permissions

XS_WIRE = Path("/usr/include/xen/io/xs_wire.h")
IDENTITY = UUID("00000000-0000-4000-8000-000000000001")


class Site:
    """A store with a home for domains 1 and 2, and what each was told."""

    def __init__(self, quota: Quota | None = None) -> None:
        self.store = Store(quota)
        self.tools = self.store.tools
        self.events: dict[int, list[tuple[str, bytes]]] = {}
        for domid in (1, 2):
            self.tools.mkdir(f"/local/domain/{domid}")
            self.tools.set_perms(f"/local/domain/{domid}", permissions(f"n{domid}"))

    def connect(self, domid: int) -> Client:
        events = self.events.setdefault(domid, [])
        return Client(self.store, domid, lambda watch, path: events.append((path, watch.token)))


@pytest.fixture
def site() -> Site:
    return Site()


def refused(request: Callable[[], Any]) -> str:
    """The name of the error that the request gets."""
    with pytest.raises(StoreError) as caught:
        request()
    return caught.value.name


@pytest.mark.skipif(not XS_WIRE.is_file(), reason="Xen's headers are not installed (try: sudo apt install libxen-dev)")
def test_limits_errors_and_fields_are_those_of_the_header() -> None:
    text = XS_WIRE.read_text(encoding="utf-8")
    numbers = {name: int(value) for name, value in re.findall(r"#define XENSTORE_(\w+)\s+(\d+)", text)}
    for name in ("ABS_PATH_MAX", "REL_PATH_MAX"):
        assert getattr(store_tree, name) == numbers[name]
    ours = ("SERVER_FEATURE_RECONNECTION", "SERVER_FEATURE_ERROR", "ERROR_NONE", "ERROR_RINGIDX", "ERROR_PROTO")
    for name in (*ours, "CONNECTED", "RECONNECT"):
        assert getattr(store_ring, name) == numbers[name]
    errors = {
        name for module in (store, store_ring, store_tree) for name in vars(module) if re.fullmatch(r"E[A-Z0-9]+", name)
    }
    assert errors <= set(re.findall(r"XSD_ERROR\((E\w+)\)", text))
    assert "EAGAIN" in errors


def test_a_write_makes_the_parents_with_empty_values_and_the_writer_owns_them(site: Site) -> None:
    one = site.connect(1)
    one.write("x/y/z", b"value")
    assert (one.read("x/y/z"), one.read("/local/domain/1/x/y"), one.directory("x")) == (b"value", b"", ["y"])
    assert [one.store.tree.nearest(f"/local/domain/1{path}")[1].owner for path in ("/x", "/x/y", "/x/y/z")] == [1, 1, 1]


def test_a_node_made_by_dom0_belongs_to_whom_its_parent_does(site: Site) -> None:
    site.tools.write("/local/domain/1/x", b"")
    assert site.tools.get_perms("/local/domain/1/x") == permissions("n1")


@pytest.mark.parametrize(
    "path", ["", "/a/", "//a", "/a//b", "/a b", "/a\0", "/ä", "@a", "/a\n", "/" + "a" * 3072, "a" * 2049]
)
def test_what_is_no_path_is_einval(site: Site, path: str) -> None:
    one = site.connect(1)
    for request in (one.read, one.directory, one.get_perms, one.mkdir, one.rm):
        assert refused(lambda request=request: request(path)) == "EINVAL"  # type: ignore[misc]


def test_a_tree_may_be_as_deep_as_a_path_is_long(site: Site) -> None:
    deepest = "/a" * 1536
    assert len(deepest) == store_tree.ABS_PATH_MAX
    site.tools.write(deepest, b"down here")
    assert site.tools.read(deepest) == b"down here"
    site.tools.write(deepest, b"again")
    assert sum(1 for _ in site.store.tree.walk("/a")) == 1536
    site.tools.rm("/a")
    assert refused(lambda: site.tools.read("/a/a")) == "ENOENT"


@pytest.mark.parametrize("text", ["", "x1", "n", "n-1", "n65536", "r1 ", "r１"])
def test_what_is_no_permission_is_einval(text: str) -> None:
    assert refused(lambda: Permission.parse(text)) == "EINVAL"


def test_permissions_read_as_they_are_written() -> None:
    texts = ("n0", "r1", "w2", "b65535")
    assert tuple(map(str, permissions(*texts))) == texts


def test_a_stranger_learns_nothing_of_what_is_there(site: Site) -> None:
    one, two = site.connect(1), site.connect(2)
    one.write("secret", b"1")
    for name in ("secret", "no-such-node"):
        assert refused(lambda name=name: two.read(f"/local/domain/1/{name}")) == "EACCES"  # type: ignore[misc]
        assert refused(lambda name=name: two.write(f"/local/domain/1/{name}", b"")) == "EACCES"  # type: ignore[misc]


def test_only_the_owner_and_dom0_set_permissions_and_only_dom0_gives_away(site: Site) -> None:
    one, two = site.connect(1), site.connect(2)
    one.write("shared", b"")
    one.set_perms("shared", permissions("n1", "b2"))
    two.write("/local/domain/1/shared", b"from two")
    assert refused(lambda: two.set_perms("/local/domain/1/shared", permissions("n1"))) == "EACCES"
    assert refused(lambda: one.set_perms("shared", permissions("n2"))) == "EPERM"
    site.tools.set_perms("/local/domain/1/shared", permissions("n2"))
    assert refused(lambda: one.read("shared")) == "EACCES"


def test_an_observed_value_changes_only_with_the_transaction_that_changes_it(site: Site) -> None:
    one = site.connect(1)
    one.write("x", b"before")
    tx = one.transaction_start()
    one.write("x", b"within", tx)
    assert (one.read("x"), one.read("x", tx)) == (b"before", b"within")
    one.transaction_end(tx, commit=True)
    assert one.read("x") == b"within"
    assert refused(lambda: one.transaction_end(tx, commit=True)) == "ENOENT"


def test_a_transaction_sees_nothing_of_what_happens_meanwhile(site: Site) -> None:
    one = site.connect(1)
    tx = one.transaction_start()
    one.write("x", b"later")
    assert refused(lambda: one.read("x", tx)) == "ENOENT"
    assert refused(lambda: one.transaction_end(tx, commit=True)) == "EAGAIN"


def test_transactions_in_different_places_both_commit(site: Site) -> None:
    one, two = site.connect(1), site.connect(2)
    first, second = one.transaction_start(), two.transaction_start()
    one.write("x/y", b"1", first)
    two.write("x/y", b"2", second)
    two.transaction_end(second, commit=True)
    one.transaction_end(first, commit=True)
    assert (one.read("x/y"), two.read("x/y")) == (b"1", b"2")


def test_a_commit_that_does_not_fit_changes_nothing() -> None:
    site = Site(Quota(nodes=5))
    one = site.connect(1)
    for place in ("a", "b"):
        one.mkdir(place)
    tx = one.transaction_start()
    one.write("a/1", b"", tx)
    one.write("a/1/2", b"", tx)
    one.write("b/1", b"")
    assert refused(lambda: one.transaction_end(tx, commit=True)) == "ENOSPC"
    assert one.directory("a") == []
    assert site.store.tree.owned[1] == 4


def test_transactions_do_not_nest(site: Site) -> None:
    one = site.connect(1)
    tx = one.transaction_start()
    assert refused(lambda: one.transaction_start(tx)) == "EBUSY"
    assert refused(lambda: one.transaction_start(tx + 1)) == "ENOENT"


def test_a_transaction_is_its_clients_alone(site: Site) -> None:
    tx = site.connect(1).transaction_start()
    assert refused(lambda: site.connect(1).mkdir("x", tx)) == "ENOENT"


def test_what_a_domain_may_have_is_bounded() -> None:
    site = Site(Quota(nodes=4, value=3, permissions=2, watches=2, transactions=2, steps=40))
    one = site.connect(1)
    one.write("a/b/c", b"123")
    assert refused(lambda: one.mkdir("d")) == "ENOSPC"
    assert refused(lambda: one.write("a", b"1234")) == "ENOSPC"
    assert refused(lambda: one.set_perms("a", permissions("n1", "r2", "r3"))) == "ENOSPC"
    tx = [one.transaction_start(), one.transaction_start()][0]
    assert refused(one.transaction_start) == "ENOSPC"
    for _ in range(5):  # a look and a change each, at paths of four names
        one.write("a", b"", tx)
    assert refused(lambda: one.write("a", b"", tx)) == "ENOSPC"
    one.watch("a", b"1")
    one.watch("a", b"2")
    assert refused(lambda: one.watch("a", b"3")) == "E2BIG"
    one.rm("a")
    one.write("d/e/f", b"")
    site.tools.write("/local/domain/1/g/h/i/j", b"12345")


def test_a_token_leaves_room_for_any_path(site: Site) -> None:
    one = site.connect(1)
    one.watch("x", b"t" * TOKEN_MAX)
    assert refused(lambda: one.watch("x", b"t" * (TOKEN_MAX + 1))) == "E2BIG"


def test_a_watch_is_triggered_straight_away_and_by_every_change_below(site: Site) -> None:
    one = site.connect(1)
    one.watch("x", b"token")
    one.mkdir("x/y")
    one.write("xy", b"")
    site.tools.write("/local/domain/1/x/y", b"")
    one.set_perms("x", permissions("n1", "r2"))
    one.rm("x")
    assert site.events[1] == [(path, b"token") for path in ("x", "x/y", "x/y", "x", "x")]


def test_what_changes_nothing_triggers_nothing(site: Site) -> None:
    one = site.connect(1)
    one.write("x", b"")
    one.watch("x", b"token")
    site.events[1].clear()
    one.mkdir("x")
    one.rm("x/not-there")
    assert refused(lambda: one.set_perms("x", permissions("n2"))) == "EPERM"
    assert site.events[1] == []


def test_a_removed_parent_triggers_the_watch_with_its_own_path(site: Site) -> None:
    one = site.connect(1)
    one.write("x/y/z", b"")
    one.watch("/local/domain/1/x/y", b"token")
    one.rm("x")
    assert site.events[1][1:] == [("/local/domain/1/x/y", b"token")]


def test_a_transaction_triggers_when_it_commits_and_once_a_node(site: Site) -> None:
    one = site.connect(1)
    one.watch("x", b"token")
    tx = one.transaction_start()
    for value in (b"1", b"2"):
        one.write("x/y", value, tx)
    assert site.events[1] == [("x", b"token")]
    one.transaction_end(tx, commit=True)
    assert site.events[1] == [("x", b"token"), ("x/y", b"token")]
    abandoned = one.transaction_start()
    one.write("x/z", b"", abandoned)
    one.transaction_end(abandoned, commit=False)
    assert len(site.events[1]) == 2


def test_nobody_hears_of_what_it_cannot_read(site: Site) -> None:
    one, two = site.connect(1), site.connect(2)
    two.watch("/local/domain/1", b"token")
    one.write("x", b"")
    assert site.events[2] == [("/local/domain/1", b"token")]
    one.set_perms("x", permissions("n1", "r2"))
    assert site.events[2][1:] == [("/local/domain/1/x", b"token")]


def test_reset_watches_ends_watches_and_transactions(site: Site) -> None:
    one = site.connect(1)
    one.watch("x", b"token")
    tx = one.transaction_start()
    one.reset_watches()
    one.write("x", b"")
    assert site.events[1] == [("x", b"token")]
    assert refused(lambda: one.read("x", tx)) == "ENOENT"
    assert site.store.watches == {}


def test_only_dom0_hears_of_domains_that_come_and_go(site: Site) -> None:
    one, dom0 = site.connect(1), site.connect(0)
    for client in (one, dom0):
        client.watch(INTRODUCE_DOMAIN, b"came")
        client.watch(RELEASE_DOMAIN, b"went")
        site.events[client.domid].clear()
    site.store.introduce(2)
    site.store.release(2)
    assert site.events[0] == [(INTRODUCE_DOMAIN, b"came"), (RELEASE_DOMAIN, b"went")]
    assert site.events[1] == []
    assert not site.store.introduced


def test_the_next_domain_of_a_number_inherits_nothing(site: Site) -> None:
    one, two = site.connect(1), site.connect(2)
    one.write("lent", b"")
    one.set_perms("lent", permissions("n1", "b2"))
    site.tools.mkdir("/pool")
    site.tools.set_perms("/pool", permissions("b0"))
    two.write("/pool/of-two/below", b"")
    two.watch("/pool", b"token")
    site.store.release(2)
    assert one.get_perms("lent") == permissions("n1")
    assert site.tools.directory("/pool") == []
    assert 2 not in site.store.tree.owned
    one.write("/pool/x", b"")
    assert site.events[2] == [("/pool", b"token")]
    with pytest.raises(ConfigError):
        site.store.release(0)


def introduced(site: Site, domid: int = 1) -> Client:
    ring = {"console_port": 2, "console_mfn": 0x1234, "store_port": 1, "store_mfn": 0x1233}
    introduce(site.store, domid, name="guest", memory_kib=65536, vcpus=2, identity=IDENTITY, **ring)
    return site.connect(domid)


def test_a_domain_finds_itself_in_the_store(site: Site) -> None:
    one = introduced(site)
    vm = f"/vm/{IDENTITY}"
    expected = {
        "name": "guest",
        "domid": "1",
        "vm": vm,
        "memory/target": "65536",
        "cpu/0/availability": "online",
        "cpu/1/availability": "online",
        "store/port": "1",
        "store/ring-ref": str(0x1233),
        "console/port": "2",
        "console/ring-ref": str(0x1234),
        "console/type": "xenconsoled",
        "control/shutdown": "",
    }
    assert {path: one.read(path).decode() for path in expected} == expected
    assert one.read(f"{vm}/uuid").decode() == str(IDENTITY)
    assert (one.directory("cpu"), one.directory("device")) == (["0", "1"], ["suspend"])
    assert 1 in site.store.introduced


def test_a_domain_writes_what_is_its_own_and_nothing_else(site: Site) -> None:
    one = introduced(site)
    one.write("control/shutdown", b"")
    one.write("data/anything", b"at all")
    for path in ("name", "memory/target", "new", "device/vbd", "console/tty", "cpu/2", f"/vm/{IDENTITY}/name"):
        assert refused(lambda path=path: one.write(path, b"")) == "EACCES"  # type: ignore[misc]
    introduced(site, 2)
    assert refused(lambda: one.read("/local/domain/2/name")) == "EACCES"


def test_nothing_is_left_of_a_removed_domain(site: Site) -> None:
    before = list(site.store.tree.walk("/local/domain/2"))
    one = introduced(site)
    one.write("data/x", b"")
    remove(site.store, 1)
    assert site.tools.directory("/local/domain") == ["2"]
    assert site.tools.directory("/vm") == []
    assert 1 not in site.store.tree.owned
    assert before == list(site.store.tree.walk("/local/domain/2"))
    remove(site.store, 1)


def test_a_domain_is_removed_whatever_dom0_did_to_its_nodes(site: Site) -> None:
    for path, value in (
        ("/local/domain/1/vm", b"/vm/\xff"),
        ("/local/domain/1/vm", b"/"),
        ("/vm", None),
        ("/local", None),
    ):
        introduced(site)
        if value is None:
            site.tools.rm(path)
        else:
            site.tools.write(path, value)
        remove(site.store, 1)
        assert site.store.introduced == set()
    site.tools.set_perms("/", permissions("n1", "b1"))
    site.store.release(1)
    assert site.tools.get_perms("/") == permissions("n0")
