"""The nodes that ComfyUI sees, one a file."""

from comfy_api.latest import ComfyExtension, io

from . import _host
from .dctnet_cartoon import DCTNetCartoon
from .gpen_restore import GPENRestore
from .prepare_image import PrepareImage
from .qwen_edit_loader import QwenEditLoader
from .restore_framing import RestoreFraming

NODES: tuple[type[io.ComfyNode], ...] = (
    DCTNetCartoon,
    GPENRestore,
    PrepareImage,
    QwenEditLoader,
    RestoreFraming,
)


class RealToon(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes; an id that another pack holds is said in the log."""
        # Not in on_load: ComfyUI 0.3.75 declares it and never calls it.
        _host.register_folders()
        _host.warn_about_taken_ids(NODES)
        return list(NODES)


async def comfy_entrypoint() -> RealToon:
    """The entry point that ComfyUI's V3 loader calls."""
    return RealToon()
