"""The one error that a user sees as a single line."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can put right.

    what: what went wrong, naming the file or address. next_step: what to do about it.
    """

    def __init__(self, what: str, next_step: str) -> None:
        self.what = _one_line(what).rstrip(".")
        self.next_step = _one_line(next_step).rstrip(".")
        super().__init__(f"{self.what}. Next step: {self.next_step}.")


def _one_line(text: str) -> str:
    return " ".join(str(text).split())
