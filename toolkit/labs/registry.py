"""The table of labs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import NamedTuple

from toolkit.labs.host import Host
from toolkit.labs.verdict import Verdict

MODULES = ("translation", "hypercalls", "direct_paging", "event_channels", "interrupt_path")
SECTIONS = ("Claim", "Experiment", "Source")

Experiment = Callable[[Host], Verdict]


class Lab(NamedTuple):
    """One idea and its experiment."""

    name: str
    idea: str
    """One line for a person."""
    experiment: Experiment

    @property
    def sections(self) -> dict[str, str]:
        """Claim, Experiment and Source, from the experiment's docstring."""
        text = inspect.getdoc(self.experiment) or ""
        parts = re.split(rf"\b({'|'.join(SECTIONS)}): ", text)
        return {name: " ".join(body.split()) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


_LABS: dict[str, Lab] = {}


def lab(name: str, *, idea: str) -> Callable[[Experiment], Experiment]:
    """Enters the decorated experiment into the table."""

    def enter(experiment: Experiment) -> Experiment:
        _LABS[name] = Lab(name, idea, experiment)
        return experiment

    return enter


def labs() -> Mapping[str, Lab]:
    """Every lab by name, in the order in which to do them."""
    for module in MODULES:
        import_module(f"toolkit.labs.{module}")
    return _LABS
