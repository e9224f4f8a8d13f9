"""Tests of the vtk command."""
