"""Runs a ComfyUI's main.py and ends with the process that started it.

Started as a script, by server.py: `python launch.py FOLDER ARGUMENTS…`. Its standard input is a
pipe that the parent never writes to; when the parent dies, however it dies, the pipe closes. That
works alike on Linux, macOS and Windows.
"""

import os
import runpy
import sys
import threading


def _end_with_parent(descriptor: int) -> None:
    try:
        while os.read(descriptor, 1):
            pass
    finally:
        os._exit(1)


def main() -> None:
    folder = sys.argv[1]
    # In place of our own folder, whose server.py would hide ComfyUI's.
    own = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder, *(entry for entry in sys.path if os.path.abspath(entry) != own)]
    sys.argv[:] = [os.path.join(folder, "main.py"), *sys.argv[2:]]
    pipe = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
