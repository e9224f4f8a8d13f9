"""`python -m toolkit.cli`: `vtk` without having been installed."""

from toolkit.start import main

main()
