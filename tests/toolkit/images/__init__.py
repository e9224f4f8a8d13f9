"""Tests of toolkit.images."""
