"""The machines that vtk gives to other people's tests."""
