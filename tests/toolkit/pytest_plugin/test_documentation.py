"""The tests that docs/pytest.md shows pass as written."""

from __future__ import annotations

import pytest

from tests.docs.documents import ROOT, blocks

pytest_plugins = ["pytester"]

EXAMPLES = [block.text for block in blocks(ROOT / "docs" / "pytest.md") if block.language == "python"]


@pytest.mark.kvm
def test_the_guest_of_the_page_echoes(pytester: pytest.Pytester) -> None:
    example, failing = (text for text in EXAMPLES if "vtk_machine" in text)
    pytester.makepyfile(example, test_boot=failing)
    pytester.runpytest_inprocess().assert_outcomes(passed=1, failed=1)  # the second shows the report of a failure


@pytest.mark.slow
@pytest.mark.qemu
def test_the_debian_of_the_page_is_one(pytester: pytest.Pytester) -> None:
    for name, fixture in (("alone", "vtk_vm("), ("shared", "vtk_vm_factory(")):
        (example,) = [text for text in EXAMPLES if fixture in text]
        if name == "shared":
            example += "\n\ndef test_it_boots(debian):\n    assert debian.wait('ssh')\n"
        pytester.makepyfile(**{f"test_{name}": example})
    pytester.runpytest_subprocess().assert_outcomes(passed=2)
