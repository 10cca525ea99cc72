"""pytest, with a last line that says what was skipped and why.

Run as a script by checks.py. `python -m pytest` would put the pack's root on sys.path, where our
`nodes` hides ComfyUI's.
"""

import sys
from collections import Counter
from pathlib import Path


def _reason(report) -> str:  # noqa: ANN001
    where = report.longrepr
    text = where[2] if isinstance(where, tuple) else str(where)
    return text.removeprefix("Skipped: ").strip()


class Skips:
    """Counts skipped tests and skipped files by their reason."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report) -> None:  # noqa: ANN001
        # An expected failure is reported as skipped too; it has run.
        if report.skipped and not hasattr(report, "wasxfail"):
            self.reasons[_reason(report)] += 1

    def pytest_collectreport(self, report) -> None:  # noqa: ANN001
        if report.skipped:
            self.reasons[_reason(report)] += 1

    def line(self) -> str:
        if not self.reasons:
            return "Skipped: nothing."
        parts = [f"{reason} ({count})" for reason, count in self.reasons.most_common()]
        return f"Skipped {self.reasons.total()}: {'; '.join(parts)}"


def main() -> int:
    # Our own folder: nobody may find its modules by their bare names.
    own = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != own]
    import pytest

    root = Path(__file__).resolve().parent.parent
    skips = Skips()
    code = pytest.main(["--rootdir", str(root), *sys.argv[1:]], plugins=[skips])
    sys.stdout.write(skips.line() + "\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
