"""RealToon: ComfyUI nodes for art-to-photo and photo-to-cartoon pictures.

Tests, benchmarks and the command line import this package without ComfyUI. Only a missing host is
forgiven here, so that an error of the pack's own still reaches ComfyUI's log.
"""

try:
    import comfy_api.latest
except ModuleNotFoundError as error:
    if error.name not in ("comfy_api", "comfy_api.latest"):
        raise
else:
    del comfy_api
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
