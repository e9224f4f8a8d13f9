"""What is made of names and answers, without a daemon: URIs, the domain's XML, states, the way to another host."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from minivmm.errors import ConfigError
from toolkit.libvirt import states
from toolkit.libvirt.connection import checked_uri, default_uri, host_of, is_local, unasking
from toolkit.libvirt.domain_xml import Files, domain_id, domain_xml, is_ours
from toolkit.libvirt.figures import figures
from toolkit.libvirt.migration import with_files
from toolkit.vm.errors import Unsupported
from toolkit.vm.provider import MIB, MachineConfig, State

CONFIG = MachineConfig(
    "web", created="2030-01-01T00:00:00+00:00", append="a <b> & 'c'", mac="52:54:00:00:00:01", memory=64 * MIB
)
FILES = Files(kernel="/k", initrd="/i", disk="/d", seed="/s", console_log="/l")


def xml_of(config: MachineConfig = CONFIG, files: Files = FILES) -> str:
    return domain_xml(config, files, hypervisor="qemu", cpu={"mode": "maximum"}, key=b"ssh-ed25519 AAAA\n")


@pytest.mark.parametrize("uri", ["qemu:///system", "qemu+ssh://root@h:22/system?keyfile=k", "qemu:///embed?root=/x"])
def test_a_uri_of_qemu_is_taken(uri: str) -> None:
    assert checked_uri(uri) == uri


@pytest.mark.parametrize(
    "uri", ["", "system", "xen:///system", "qemu:", "qemu+ssh://host", "http://h/system", "qemu://["]
)
def test_what_is_no_uri_of_qemu_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="--uri"):
        checked_uri(uri)


def test_the_daemon_here_and_another_hosts_are_told_apart() -> None:
    assert is_local("qemu:///session")
    assert is_local("qemu+unix:///system?socket=/x")
    assert not is_local("qemu+ssh://h/system")
    assert not is_local("qemu+ext:///system?command=x")
    assert host_of("qemu+ssh://me@h:1/system") == "h"


def test_ssh_asks_nothing_for_nobody_would_see_it() -> None:
    assert unasking("qemu+ssh://h/system") == "qemu+ssh://h/system?no_tty=1"
    assert unasking("qemu+ssh://h/system?keyfile=k") == "qemu+ssh://h/system?keyfile=k&no_tty=1"
    assert unasking("qemu+ssh://h/system?no_tty=0") == "qemu+ssh://h/system?no_tty=0"
    assert unasking("qemu:///system") == "qemu:///system"


def test_libvirts_own_default_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu+ssh://h/system")
    assert default_uri() == "qemu+ssh://h/system"


def test_the_xml_says_what_the_machine_is_and_is_known_again() -> None:
    domain = ElementTree.fromstring(xml_of())
    assert domain.findtext("os/cmdline") == CONFIG.append
    assert domain.findtext("uuid") == domain_id(CONFIG)
    assert [disk.get("file") for disk in domain.findall("devices/disk/source")] == ["/d", "/s"]
    assert domain.find("devices/panic") is not None
    assert is_ours(xml_of())
    assert not is_ours("<domain/>")


def test_a_machine_made_anew_is_another_domain() -> None:
    assert domain_id(CONFIG) == domain_id(CONFIG)
    assert domain_id(CONFIG) != domain_id(MachineConfig("web", created="2030-01-02T00:00:00+00:00", mac=CONFIG.mac))


def test_a_moved_domain_differs_in_its_files_only() -> None:
    moved = with_files(xml_of(), Files(kernel="/K", initrd="/I", disk="/D", seed="/S"))
    assert moved == xml_of(files=Files(kernel="/K", initrd="/I", disk="/D", seed="/S"))


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (states.SHUTOFF, 0, State.STOPPED),
        (states.SHUTOFF, 3, State.CRASHED),  # VIR_DOMAIN_SHUTOFF_CRASHED
        (states.CRASHED, 1, State.PANICKED),  # VIR_DOMAIN_CRASHED_PANICKED
        (states.PAUSED, 10, State.PANICKED),  # VIR_DOMAIN_PAUSED_CRASHED
        (states.PAUSED, 11, State.STARTING),  # VIR_DOMAIN_PAUSED_STARTING_UP
        (states.PAUSED, 5, State.PAUSED),  # VIR_DOMAIN_PAUSED_IOERROR
        (states.PMSUSPENDED, 1, State.PAUSED),
        (99, 99, State.PAUSED),
    ],
)
def test_libvirts_states_are_ours(state: int, reason: int, expected: State) -> None:
    pytest.importorskip("libvirt")
    assert states.status_of(state, reason).state is expected


def test_figures_are_sums_over_devices_and_none_where_nothing_is_told() -> None:
    told = {"cpu.time": 2_000_000_000, "balloon.current": 1024, "block.count": 2}
    told |= {"block.0.rd.bytes": 3, "block.1.rd.bytes": 4}
    found = figures(told)
    assert found.cpu_time == 2.0
    assert found.balloon == MIB
    assert found.disk_read == 7
    assert found.net_sent is None
    assert figures({}).cpu_time is None


def test_another_hosts_guests_are_reached_through_ssh_to_it() -> None:
    from toolkit.libvirt.tunnel import ssh_command

    line = ssh_command("qemu+ssh://me@h:2222/system?keyfile=/k", "127.0.0.1:5000")
    assert line[0].endswith("ssh")
    assert line[-2:] == ["--", "h"]
    assert line[line.index("-W") + 1] == "127.0.0.1:5000"
    assert line[line.index("-p") + 1] == "2222"
    with pytest.raises(Unsupported, match="qemu\\+ssh"):
        ssh_command("qemu+tls://h/system", "127.0.0.1:5000")
