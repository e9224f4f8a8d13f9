"""The `vtk` command with fakes for techniques: `python -m tests.toolkit.compare.fake_vtk NAME[,VICE…]… -- ARG…`."""

from __future__ import annotations

import sys

from tests.toolkit.compare.test_runner import Scripted
from toolkit.compare import techniques
from toolkit.start import main

divider = sys.argv.index("--")
techniques.TECHNIQUES = tuple(Scripted(*argument.split(",")) for argument in sys.argv[1:divider])
sys.argv[1:] = sys.argv[divider + 1 :]
main()
