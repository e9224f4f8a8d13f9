"""Guests built by the other compiler, once for all tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from guest_os.build import build


@pytest.fixture(scope="session")
def gcc_images() -> dict[str, Path]:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed (try: apt-get install gcc)")
    return build(compiler_name="gcc")
