"""Get a ComfyUI, start it, talk to it.

Used by ``run.py``, by the tests and by anyone who queues from Python. Everything that runs before
the environment exists (bootstrap, arguments, environment, sources, download) is standard library
only; the rest needs aiohttp, tqdm and Pillow.
"""
