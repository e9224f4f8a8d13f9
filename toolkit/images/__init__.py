"""Kernels and small images of other people's systems: fetched, taken apart, and put together for our machines."""
