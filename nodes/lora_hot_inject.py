"""LoRAHotInject: a LoRA beside the weights, changed in a moment, the base never touched."""

from __future__ import annotations

import time
from pathlib import Path

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..weights_loader import lora as files
from ..weights_loader.errors import WeightsError
from ..weights_loader.lora_families import QWEN, UNKNOWN
from . import _host, _lora
from ._tensors import InputError

NONE = "none"
BESIDE, FOLDED = "beside the weights", "folded by the host"
MODES = (BESIDE, FOLDED)
_MB = 1 << 20


class LoRAHotInject(io.ComfyNode):
    """The model with one more LoRA, its name for captions, and what of the file fits."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _host.schema(
            node_id="LoRAHotInject",
            display_name="LoRA Hot Inject",
            category="RealToon",
            description=(
                "Puts a LoRA beside the model's weights, so that changing it takes a fraction of a"
                " second, nothing of the base is written or loaded again, and an fp8 base loses"
                " none of it. Reads every layout; a file for another model is refused by name."
                " Several in a chain add up."
            ),
            search_aliases=["load lora", "LoraLoaderModelOnly", "LoKr", "LoHa", "DoRA", "weight"],
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str, **_: object) -> str:
        """A file that was replaced is a change."""
        path = _lora.names().get(lora)
        return "" if path is None else repr(_host.file_state(path))

    @classmethod
    def validate_inputs(cls, lora: str | None = None, mode: str | None = None) -> bool | str:
        """A file that cannot be, or is for another model, is refused before the run."""
        found = _lora.names()
        for name, value, known in (("lora", lora, [NONE, *found]), ("mode", mode, MODES)):
            answer = _host.one_of(name, value, known)
            if answer is not True:
                return answer
        return True if lora is None or lora == NONE else _refusal(found[lora])

    @classmethod
    def execute(
        cls, model: ModelPatcher, lora: str, strength: float, mode: str, keep_in_memory_mb: int
    ) -> io.NodeOutput:
        started = time.perf_counter()
        if lora == NONE or strength == 0:
            report = "LoRA: none" if lora == NONE else f"LoRA: {lora}, off (strength 0)"
            return _given(model, report)
        path = _lora.names().get(lora)
        if path is None:
            raise InputError(
                "lora", "a file in models/loras", repr(lora), "refresh (R) and choose one"
            )
        beside = mode == BESIDE
        opened, kept = _lora.open_file(path, model, beside, keep_in_memory_mb * _MB)
        link = _lora.Link(_named(path, strength), opened, strength)
        lines = [f"LoRA: {lora}, strength {strength:g}, {mode}", *opened.file.coverage.told()]
        if beside:
            model = _lora.beside(model, link)
        else:
            model, left = _lora.folded(model, link)
            lines += [f"biases that found no place: {left}"] if left else []
        links = _lora.chain(model)
        lines += [f"chain: {_joined(links)}"] if len(links) > 1 else []
        seconds = time.perf_counter() - started
        lines.append(
            f"seconds: {seconds:.3f}, {'kept in memory' if kept else 'read from the file'}"
        )
        return _given(model, "\n".join(lines))


def _given(model: ModelPatcher, report: str) -> io.NodeOutput:
    name = _joined(_lora.chain(model)) or NONE
    return io.NodeOutput(model, name, report, ui=ui.PreviewText(report))


def _joined(links: tuple[_lora.Link, ...]) -> str:
    return " + ".join(link.name for link in links)


def _named(path: Path, strength: float) -> str:
    return path.stem if strength == 1 else f"{path.stem} ({strength:g})"


def _refusal(path: Path) -> bool | str:
    """What a file's header says against it, True where nothing."""
    try:
        described = files.describe(path)
    except WeightsError as error:
        return f"lora: {error}"
    if described.family not in (QWEN, UNKNOWN):
        return (
            f"lora: expected a LoRA for {QWEN}, got {path.name}, made for {described.family}."
            " Next step: choose another file."
        )
    return True


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="Qwen-Image or Qwen-Image-Edit, with LoRAs on it or not."),
        io.Combo.Input(
            "lora",
            options=[NONE, *_lora.names()],
            default=NONE,
            tooltip=(
                "A file in models/loras, in natural order: _9 before _20, v2511-0715 before"
                " v2511-0801. none leaves the model as it is."
            ),
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=-4.0,
            max=4.0,
            step=0.05,
            tooltip="How much of the LoRA is added. 0 is none of it; below 0 turns it around.",
        ),
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default=BESIDE,
            tooltip=(
                "beside the weights: in a moment, exact on fp8 too. folded by the host: ComfyUI"
                " writes it into the weights, which takes as long as its own LoRA loader, and then"
                " costs no time in a step."
            ),
        ),
        io.Int.Input(
            "keep_in_memory_mb",
            default=2048,
            min=0,
            max=65536,
            tooltip=(
                "How much main memory files that were read may take together, so that going back"
                " to one reads nothing. 0 keeps none."
            ),
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Model.Output(display_name="model", tooltip="The model with the LoRA."),
        io.String.Output(
            display_name="name", tooltip="The names of all LoRAs in the chain, for ResultCaption."
        ),
        io.String.Output(
            display_name="report", tooltip="What of the file fits, its ranks, and the seconds."
        ),
    ]
