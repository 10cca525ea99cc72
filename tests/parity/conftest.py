"""The seeded weights and plain networks of the unit tests, for these tests too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "unit"))
