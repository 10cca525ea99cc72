"""The seeded weights and plain networks of the unit tests, for these tests too."""

import importlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "unit"))

# torch loads its compiler when something first asks for it, which may be any later test. After
# TensorFlow or OpenVINO, which bring an LLVM of their own, that ends the process.
importlib.import_module("torch._dynamo")
