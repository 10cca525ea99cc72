"""The host's progress as one bar in a terminal, or as a line per node where there is none."""

from __future__ import annotations

import sys

from tqdm import tqdm

from .client import Update
from .console import say


class JobBar:
    """One bar over all jobs. Use it as a context and pass its update() to ComfyClient.run."""

    def __init__(self, jobs: int) -> None:
        self._done = [0.0] * jobs
        self._live = sys.stderr.isatty()
        self._last = (-1, "")
        self._bar: tqdm | None = None

    def __enter__(self) -> JobBar:
        if self._live:
            shape = "{l_bar}{bar}| {elapsed}<{remaining}"
            self._bar = tqdm(total=float(len(self._done)), bar_format=shape, dynamic_ncols=True)
        return self

    def __exit__(self, *unused: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, update: Update) -> None:
        # Nodes that are served from the host's cache must not move the bar back.
        self._done[update.job] = max(self._done[update.job], update.fraction)
        count = len(self._done)
        job = f"{update.job + 1}/{count} " if count > 1 else ""
        if self._bar is None:
            if update.title and (update.job, update.title) != self._last:
                self._last = (update.job, update.title)
                say(f"  {job}{update.title}")
            return
        step = f" {update.step}/{update.steps}" if update.steps > 1 else ""
        self._bar.set_description_str(f"{job}{update.title or 'done'}{step}", refresh=False)
        self._bar.n = round(sum(self._done), 4)
        self._bar.refresh()
