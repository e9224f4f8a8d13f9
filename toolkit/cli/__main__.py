"""`python -m toolkit.cli`: `vtk` without having been installed."""

from toolkit.cli import main

main()
