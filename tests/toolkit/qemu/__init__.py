"""Tests of toolkit.qemu."""
