"""Bytes on disk become checked, named tensors and a config.

Importing this package imports neither torch nor the host: the command line lists the catalogue with
the standard library alone. The readers (`dctnet`, `mtcnn`) import torch when they are imported.
"""
