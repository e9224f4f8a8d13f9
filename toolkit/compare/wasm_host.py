"""A process that is a language-level virtual machine: wasmtime runs a WebAssembly module on standard input and output.

    python -P wasm_host.py MODULE DIRECTORY BYTES SECONDS

The module sees nothing but those streams and the files of DIRECTORY, read-only. It must make do with BYTES of memory,
and after SECONDS it is ended, whatever it does. Exit status: 0 the module came to its end, else what it exited with, or
1 with one line on standard error that says why. Belongs to no package when run: imports wasmtime and nothing of ours.
"""

from __future__ import annotations

import os
import sys
import threading

try:
    from wasmtime import Config, Engine, ExitTrap, Linker, Module, Store, Trap, WasiConfig, WasmtimeError
except (ImportError, OSError, RuntimeError) as error:  # not for this host's processor, or system
    sys.exit(f"wasmtime cannot be loaded: {error}")


def run(module_path: str, directory: str, memory: int, seconds: float) -> int:
    """Runs the module to its end; the exit status."""
    config = Config()
    # Generated code looks at a counter in every loop and function (wasmtime's epochs): who advances it ends the module.
    config.epoch_interruption = True
    engine = Engine(config)
    store = Store(engine)
    store.set_epoch_deadline(1)
    store.set_limits(memory_size=memory)
    wasi = WasiConfig()
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    wasi.preopen_dir(directory, ".", fs_mutable=False)
    store.set_wasi(wasi)
    linker = Linker(engine)
    linker.define_wasi()
    deadline = threading.Timer(seconds, engine.increment_epoch)
    deadline.daemon = True
    deadline.start()
    try:
        instance = linker.instantiate(store, Module.from_file(engine, module_path))
        start = instance.exports(store)["_start"]
        start(store)  # type: ignore[operator]  # a module without one was not made by us, and is told below
    except ExitTrap as end:
        return end.code
    finally:
        deadline.cancel()
    return 0


def main() -> int:
    """See the module. The last words of what failed are one line."""
    try:
        return run(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    except (Trap, WasmtimeError) as error:
        print(f"the module was ended: {str(error).strip().splitlines()[-1].strip()}", file=sys.stderr)
    except OSError as error:
        print(f"the module cannot be read: {error.strerror}", file=sys.stderr)
    except (KeyError, TypeError):
        print("this is no WASI command: it exports no function _start", file=sys.stderr)
    return 1


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # a thread of the runtime's may still be reading standard input
