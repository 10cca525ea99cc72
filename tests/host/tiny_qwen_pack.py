"""A pack of one node for tests: a tiny Qwen-Image of random weights, with conditionings for it.

Copied into a host as custom_nodes/tiny_qwen/__init__.py.
"""

import comfy.model_patcher
import comfy.supported_models
import torch

SIZES = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "joint_attention_dim": 48,
    "axes_dims_rope": (8, 12, 12),
}


class TinyQwen:
    """flow: False gives a model of another kind, which no shift fits."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING")
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802
        return {"required": {"flow": ("BOOLEAN", {"default": True})}}

    def make(self, flow: bool) -> tuple:
        chance = torch.Generator().manual_seed(3)
        config = comfy.supported_models.QwenImage(dict(SIZES))
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "")
        with torch.no_grad():
            for weight in model.diffusion_model.parameters():
                weight.copy_(torch.randn(weight.shape, generator=chance) * 0.05)
        cpu = torch.device("cpu")
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
        if not flow:
            patcher.add_object_patch("model_sampling", object())
        conds = [[[torch.randn(1, 7, 48, generator=chance), {}]] for _ in range(2)]
        return (patcher, *conds)


NODE_CLASS_MAPPINGS = {"TinyQwen": TinyQwen}
