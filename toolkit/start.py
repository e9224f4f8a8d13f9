"""Where the `vtk` process starts and ends: two economies around `toolkit.cli.main`, a sixth of `vtk run hello`.

Loading modules makes objects that all live on, in which the garbage collector looks for garbage again and again: it is
off meanwhile, and never looks at them later. And when a command has returned its status, its files closed and its
threads ended, the process ends without taking the interpreter down piece by piece.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """The console script `vtk`."""
    gc.disable()
    from toolkit.cli import run_to_end

    gc.freeze()
    gc.enable()
    status = run_to_end()
    try:
        sys.stderr.flush()
    finally:
        os._exit(status)
