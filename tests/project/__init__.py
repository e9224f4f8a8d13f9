"""Tests of the project's own plumbing: setup, lock, wheel."""
