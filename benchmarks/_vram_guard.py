"""Figures of VRAMGuard, on tiny weights and on a simulated card, in a ComfyUI's own process."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import _comfy
from _table import Row, missing

OVERHEAD_BOUND = 0.02
ORDERS_BOUND = 500


def guard(_settings: SimpleNamespace) -> Iterator[Row]:
    """Budgets in random orders of loading, errors and interrupts, and what guarding takes."""
    comfy = _comfy.folder()
    if comfy is None:
        yield missing("guarded runs", _comfy.NO_COMFY)
        return
    found = _comfy.cases("guard_cases.py", comfy)
    orders = found["sequences"]
    over, left = len(orders["overruns"]), len(orders["leftovers"])
    yield Row(
        f"budgets on a simulated card, {orders['sequences']} random orders,"
        f" {orders['loads']} guarded loads",
        f"{over} overruns, {left} leftovers",
        f"{orders['overruns where only warned']} overruns where it only warns",
        bound=f"0 and 0, in ≥ {ORDERS_BOUND} orders",
        met=not over and not left and orders["sequences"] >= ORDERS_BOUND,
    )
    broken = {name: each for name, each in found["broken"].items() if name != "run"}
    whole = [name for name, each in broken.items() if each == [True, 0, []]]
    yield Row(
        "errors and interrupts, one at each phase of a run",
        f"{len(whole)} of {len(broken)} left host and results bit-equal",
        bound="all",
        met=len(whole) == len(broken) and found["broken"]["run"] == [],
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
