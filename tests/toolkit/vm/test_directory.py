"""A machine is there whole or not at all, under one name, and one vtk at a time changes it."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import pytest

from minivmm.errors import ConfigError, ImageError, VtkError
from tests.toolkit.vm.conftest import MakeMachine
from toolkit.vm.directory import MachineDirectory, Machines, check_name
from toolkit.vm.errors import MachineBusy, MachineExists, MachineMissing, StateError
from toolkit.vm.making import Parts, create
from toolkit.vm.provider import MIB


@pytest.mark.parametrize("name", ["a", "web-1", "A.b_c", "0", "x" * 64])
def test_a_name_of_letters_digits_dots_and_dashes_is_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".new-1", "-x", "a/b", "../a", "a b", "caffè", "x" * 65, "a\n", "a\0"])
def test_any_other_name_is_refused(machines: Machines, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a machine's name"):
        create(machines, name, Parts(kernel=Path(__file__)))
    assert machines.names() == []


def test_of_many_creates_at_once_one_wins(machines: Machines) -> None:
    ends: list[str] = []

    def one() -> None:
        try:
            create(machines, "a", Parts(kernel=Path(__file__)))
            ends.append("made")
        except MachineExists:
            ends.append("exists")

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["exists"] * 5 + ["made"]
    assert machines.get("a").config().name == "a"


def test_a_create_that_fails_leaves_nothing(machines: Machines, tmp_path: Path) -> None:
    broken = tmp_path / "disk.qcow2"
    broken.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(200))
    with pytest.raises(VtkError, match="qemu-img info failed"):
        create(machines, "a", Parts(disk=broken))
    assert [path.name for path in machines.root.iterdir()] == [".lock"]


def test_what_a_killed_create_left_is_removed_by_the_next(machines: Machines, make: MakeMachine) -> None:
    left = machines.root / ".new-0badcafe"
    left.mkdir(parents=True)
    (left / "id_ed25519").touch()
    assert machines.names() == []
    make("b")
    assert not left.exists()


def test_every_machine_gets_a_port_of_its_own(make: MakeMachine) -> None:
    assert len({make(name).config().ssh_port for name in ("a", "b", "c")}) == 3


def test_the_key_and_the_directory_are_the_users_alone(make: MakeMachine) -> None:
    machine = make()
    assert machine.directory.path.stat().st_mode & 0o777 == 0o700
    assert (machine.directory / "id_ed25519").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"schema": 99}', b'{"schema": 1}', b"\xff\xfe"])
def test_a_damaged_configuration_is_told(make: MakeMachine, content: bytes) -> None:
    machine = make()
    (machine.directory / "config.json").write_bytes(content)
    with pytest.raises(StateError, match="is damaged"):
        machine.config()
    assert machine.status().state.value == "damaged"


def test_a_field_that_a_later_vtk_adds_does_no_harm(make: MakeMachine) -> None:
    machine = make()
    file = machine.directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"colour": "red"}))
    assert machine.config().name == "a"


def test_a_locked_machine_is_told_busy_with_who_holds_it(make: MakeMachine) -> None:
    machine = make()
    with (
        machine.directory.locked("start a"),
        pytest.raises(MachineBusy, match=r"vtk vm start a, process \d+"),
        machine.directory.locked("kill a", timeout=0.1),
    ):
        pass


def test_who_waits_for_the_lock_of_a_machine_that_is_deleted_is_told(machines: Machines, make: MakeMachine) -> None:
    machine = make()
    ends: list[Exception] = []

    def wait() -> None:
        try:
            machine.start()
        except MachineMissing as error:
            ends.append(error)

    with open(machine.directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=wait)
        thread.start()
        machines.remove(machine.directory)
    thread.join()
    assert len(ends) == 1


def test_a_socket_works_below_a_path_longer_than_its_address(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100) / ("e" * 100)
    path.mkdir(parents=True)
    directory = MachineDirectory(path)
    (path / "s").touch()  # a stale one
    with directory.listen("s") as listener, directory.connect("s", 1.0) as connection:
        connection.sendall(b"x")
        assert listener.accept()[0].recv(1) == b"x"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (Parts(), "nothing to boot"),
        (Parts(kernel=Path("/nowhere/kernel")), "cannot be used"),
        (Parts(initrd=Path(__file__), disk=Path(__file__)), "an initrd needs a kernel"),
        (Parts(kernel=Path(__file__), disk_size=MIB), "--disk-size"),
        (Parts(kernel=Path(__file__), memory=MIB + 1), "bytes of memory"),
        (Parts(kernel=Path(__file__), cpus=0), "0 CPUs"),
    ],
)
def test_what_cannot_be_made_is_refused(machines: Machines, parts: Parts, message: str) -> None:
    with pytest.raises((ConfigError, ImageError), match=message):
        create(machines, "a", parts)
    assert machines.names() == []


def test_a_disk_is_an_overlay_and_may_only_grow(machines: Machines, tmp_path: Path) -> None:
    backing = tmp_path / "a, b.img"  # a comma, for qemu-img's options
    backing.write_bytes(bytes(MIB))
    machine = create(machines, "a", Parts(disk=backing, disk_size=4 * MIB))
    assert (machine / "disk.qcow2").is_file()
    with pytest.raises(ConfigError, match="cannot hold"):
        create(machines, "b", Parts(disk=backing, disk_size=1024))


@pytest.mark.usefixtures("ordinary_user")
def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "machines").mkdir(0o500)
    with pytest.raises(StateError, match="Permission denied"):
        create(Machines(tmp_path / "machines"), "a", Parts(kernel=Path(__file__)))
