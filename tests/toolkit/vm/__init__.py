"""Tests of `toolkit.vm`."""
