"""Figures of VRAMGuard, on tiny weights and on a simulated card, in a ComfyUI's own process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace

import _comfy
from _table import Row, missing

OVERHEAD_BOUND = 0.02
GRAPHS = 500
QUICK_GRAPHS = 40


def guard(settings: SimpleNamespace) -> Iterator[Row]:
    """Budgets in random graphs, errors and interrupts at each phase, and what guarding takes."""
    comfy = _comfy.folder()
    if comfy is None:
        yield missing("guarded runs", _comfy.NO_COMFY)
        return
    os.environ["REALTOON_GRAPHS"] = str(QUICK_GRAPHS if settings.quick else GRAPHS)
    found = _comfy.cases("guard_cases.py", comfy)
    graphs = found["graphs"]
    over, left = len(graphs["overruns"]), len(graphs["leftovers"])
    yield Row(
        f"{graphs['graphs']} random graphs on a simulated card (tiny models; text, picture"
        f" encoding, sampling, decoding): {graphs['guarded loads']} guarded phases,"
        f" {graphs['checks']} checks while they compute",
        f"{over} overruns, {left} leftovers",
        f"{graphs['would overrun unguarded']} overruns where it only warns",
        bound=f"0 and 0, in ≥ {GRAPHS} graphs",
        met=not over and not left and graphs["graphs"] >= (1 if settings.quick else GRAPHS),
    )
    broken = {name: each for name, each in found["broken"].items() if name != "run"}
    whole = [name for name, each in broken.items() if each == [True, 0, []]]
    yield Row(
        "an error, an interrupt and a full card in loading, text encoding, its vision part, picture"
        " encoding, sampling, decoding",
        f"{len(whole)} of {len(broken)} left host, weights and results bit-equal",
        bound="all",
        met=len(whole) == len(broken) and found["broken"]["run"] == [True, 0, []],
    )
    took = found["overhead"]
    share = took["median ratio"] - 1
    yield Row(
        "a guarded run, tiny weights, 256², 10 steps",
        f"{1e3 * took['guarded']:.1f} ms",
        f"{1e3 * took['plain']:.1f} ms unguarded",
        f"{100 * share:+.1f} %",
        f"≤ +{100 * OVERHEAD_BOUND:g} %",
        share <= OVERHEAD_BOUND,
    )
