"""The `vtk` command and what it drives: this host, our machines, other people's machines, and their comparison."""
