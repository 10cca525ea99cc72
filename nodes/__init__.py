"""The nodes that ComfyUI sees, one a file."""

from comfy_api.latest import ComfyExtension, io

from . import _host
from .dctnet_cartoon import DCTNetCartoon
from .edit_preset import EditPreset
from .encode_for_edit import EncodeForEdit
from .gpen_restore import GPENRestore
from .lora_hot_inject import LoRAHotInject
from .prepare_image import PrepareImage
from .qwen_edit_loader import QwenEditLoader
from .restore_framing import RestoreFraming
from .result_caption import ResultCaption
from .tiled_vae_decode import TiledVAEDecode
from .tiled_vae_encode import TiledVAEEncode
from .vram_guard import VRAMGuard

NODES: tuple[type[io.ComfyNode], ...] = (
    DCTNetCartoon,
    EditPreset,
    EncodeForEdit,
    GPENRestore,
    LoRAHotInject,
    PrepareImage,
    QwenEditLoader,
    RestoreFraming,
    ResultCaption,
    TiledVAEDecode,
    TiledVAEEncode,
    VRAMGuard,
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
