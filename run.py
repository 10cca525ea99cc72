"""RealToon's command line: ``python run.py cartoon photo.jpg``, ``python run.py test``, and more.

Standard library only. It makes (or reuses) an environment in the cache folder and goes on in there.
This file must stay readable for Pythons far too old to run it, so that they get a clear answer.
"""

import os
import sys

OLDEST = (3, 10)


def load_pack():
    """Load this checkout as the package ``realtoon`` and keep its root off sys.path.

    On sys.path our ``nodes`` would hide ComfyUI's module of the same name.
    """
    import importlib.util

    root = os.path.dirname(os.path.abspath(__file__))
    real = os.path.realpath(root)
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != real]
    spec = importlib.util.spec_from_file_location(
        "realtoon", os.path.join(root, "__init__.py"), submodule_search_locations=[root]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["realtoon"] = module
    spec.loader.exec_module(module)


def main():
    if sys.version_info < OLDEST:
        said = "run.py: Python {}.{} is too old, RealToon needs {}.{} or newer. Next step: start "
        said += "it with a newer one, for example `python3.12 run.py`.\n"
        sys.stderr.write(said.format(*(sys.version_info[:2] + OLDEST)))
        return 1
    load_pack()
    import importlib

    return importlib.import_module("realtoon.host.bootstrap").main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
