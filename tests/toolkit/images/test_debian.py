"""Packages come from the cache when apt is silent, and modules are loaded after those they need."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minivmm.errors import ImageError
from toolkit.images import debian_package
from toolkit.images.debian_kernel import ELF64_EHDR, ELF64_SHDR, DebianKernel, module_depends


def module_elf(depends: str) -> bytes:
    """An ELF64 file with nothing but a .modinfo section."""
    modinfo = b"license=GPL\0depends=" + depends.encode() + b"\0"
    names = b"\0.modinfo\0.shstrtab\0"
    modinfo_at = ELF64_EHDR.size
    names_at = modinfo_at + len(modinfo)
    sections_at = names_at + len(names)
    header = ELF64_EHDR.pack(b"\x7fELF\2\1\1", 1, 62, 1, 0, 0, sections_at, 0, 64, 0, 0, ELF64_SHDR.size, 3, 2)
    sections = (
        ELF64_SHDR.pack(*[0] * 10)
        + ELF64_SHDR.pack(1, 1, 0, 0, modinfo_at, len(modinfo), 0, 0, 1, 0)
        + ELF64_SHDR.pack(10, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    )
    return header + modinfo + names + sections


def kernel_with(directory: Path, modules: dict[str, list[str]]) -> DebianKernel:
    for file in directory.glob("*.ko"):
        file.unlink()
    for name, needed in modules.items():
        (directory / f"{name}.ko").write_bytes(module_elf(",".join(needed)))
    return DebianKernel("6.1-test", directory / "vmlinuz", directory)


@given(st.lists(st.sets(st.integers(0, 7)), min_size=8, max_size=8), st.permutations(range(8)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the directory is emptied each time
def test_every_module_comes_after_those_it_needs(tmp_path: Path, edges: list[set[int]], wanted: list[int]) -> None:
    # Module i needs only lower ones: no cycles.
    needs = {f"m{i}": [f"m{j}" for j in sorted(edges[i]) if j < i] for i in range(8)}
    kernel = kernel_with(tmp_path, needs)
    order = [path.stem for path in kernel.module_files(f"m{i}" for i in wanted)]
    assert sorted(order) == sorted(needs)
    for name, needed in needs.items():
        assert all(order.index(other) < order.index(name) for other in needed)


def test_dash_and_underscore_name_the_same_module(tmp_path: Path) -> None:
    kernel = kernel_with(tmp_path, {"kvm-amd": ["kvm"], "kvm": []})
    assert [path.name for path in kernel.module_files(["kvm_amd"])] == ["kvm.ko", "kvm-amd.ko"]


def test_a_module_the_kernel_lacks_is_named_with_who_needs_it(tmp_path: Path) -> None:
    kernel = kernel_with(tmp_path, {"kvm-amd": ["ccp"]})
    with pytest.raises(ImageError, match="'ccp' <- kvm_amd"):
        kernel.module_files(["kvm-amd"])


def test_modules_that_need_each_other_are_refused(tmp_path: Path) -> None:
    kernel = kernel_with(tmp_path, {"a": ["b"], "b": ["a"]})
    with pytest.raises(ImageError, match="need each other -> a -> b -> a"):
        kernel.module_files(["a"])


def test_what_is_built_in_is_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio/virtio-pci.ko\n")
    kernel = kernel_with(tmp_path, {"a": ["virtio_pci"]})
    assert [path.name for path in kernel.module_files(["virtio_pci", "a"])] == ["a.ko"]


@given(st.binary(max_size=300), st.integers(0, 200))
@example(b"\0\0\0\x80" + bytes(12) + b"\0\1\0\0", 44)  # a section header offset of 2^63
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_broken_module_makes_it_fail_in_no_other_way(tmp_path: Path, content: bytes, cut: int) -> None:
    path = tmp_path / "broken.ko"
    for damaged in (content, module_elf("kvm")[:cut] + content):
        path.write_bytes(damaged)
        with suppress(ImageError):
            module_depends(path)


@pytest.fixture
def no_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("no_apt")
def test_without_apt_the_reason_is_given(tmp_path: Path) -> None:
    with pytest.raises(debian_package.PackageMissing, match="busybox-static") as caught:
        debian_package.unpacked("busybox-static", tmp_path / "cache")
    assert "no apt-get" in caught.value.cause


@pytest.mark.usefixtures("no_apt")
def test_without_apt_the_newest_version_in_the_cache_serves(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "busybox-static_1.35.0_amd64").mkdir(parents=True)
    assert debian_package.unpacked("busybox-static", cache).name == "busybox-static_1.35.0_amd64"
