"""The technique that is a language-level virtual machine: WebAssembly in wasmtime."""

from __future__ import annotations

import sys
from pathlib import Path

from minivmm.errors import HostError
from toolkit.compare.session import ProcessSession, Session
from toolkit.compare.techniques.technique import Bench, Obstacle, obstacle_of

HOST = Path(__file__).parent.parent / "wasm_host.py"


class Wasm:
    """The workloads as a WebAssembly module, which wasmtime compiles when it loads it, in a process of its own."""

    name = "wasm"
    summary = "a WebAssembly module in wasmtime: a language-level virtual machine"

    def obstacle(self) -> Obstacle | None:
        """wasmtime has no wheel for every host; the module may not build."""
        return obstacle_of(_find_wasmtime) or obstacle_of(_module)

    def open(self, bench: Bench) -> Session:
        """See Technique."""
        arguments = (_module(), bench.disk.parent, bench.memory, bench.lifetime)
        return ProcessSession([sys.executable, "-P", str(HOST), *map(str, arguments)])


def _module() -> Path:
    import guest_os

    return guest_os.native("wasm32")


def _find_wasmtime() -> None:
    """Raises HostError where the package cannot be found. It is not imported: that takes a tenth of a second."""
    from importlib.util import find_spec

    if find_spec("wasmtime") is None:
        raise HostError(
            "there is no WebAssembly runtime", cause="wasmtime is not installed", remedy="pip install wasmtime"
        )
