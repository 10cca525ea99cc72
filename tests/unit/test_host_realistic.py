"""`run.py realistic` before and around the host: which weights, which preset, which workflow."""

from __future__ import annotations

from pathlib import Path

import pytest
from realtoon.host import arguments, bootstrap, picture_job, qwen_weights, realistic, workflow
from realtoon.host.console import Stages
from realtoon.host.errors import UserError
from realtoon.host.inside import Run
from realtoon.host.sources import Host
from realtoon.weights_loader import catalog

PRESETS = [
    "official, 40 steps",
    "official, 20 steps",
    "Lightning, 8 steps",
    "Lightning, 4 steps",
    "RealCharacters",
]
BASE = "qwen_image_edit_2511_fp8mixed.safetensors"
TEXT, VAE = "qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen_image_vae.safetensors"
FOUR = "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors"
EIGHT = FOUR.replace("-4steps-", "-8steps-")
FOLDER = realistic.FROM_FOLDER


def host_in(folder: Path, version: str = "0.33.0", owned: bool = True) -> Host:
    return Host(folder / "ComfyUI", version, "test", owned)


def run_of(folder: Path, line: str, version: str = "0.33.0") -> Run:
    args = bootstrap.parse(f"realistic {line}".split())
    return Run(args, folder / "cache", Stages(), host_in(folder, version))


def offered(**more: list[str]) -> realistic.Known:
    """What a ComfyUI offers: by default the files that the workflows name."""
    lists = {
        "base": [BASE],
        "text_encoder": [FOLDER, TEXT],
        "vae": [FOLDER, VAE],
        "lora": ["none", FOUR],
        "preset": PRESETS,
        **more,
    }
    return lambda kind, given: lists[given]


def filled(run: Run, known: realistic.Known, name: str = realistic.USUAL) -> dict[str, object]:
    """{"QwenEditLoader.base": value, …} of all that is set. Several nodes of a class: a list."""
    graph = workflow.load(picture_job.file_of(name))
    changes = {
        **realistic.models(run, graph, known),
        **realistic.loras(run, graph, known),
        **realistic.wishes(run, graph, known),
    }
    assert all(given in graph[node]["inputs"] for node, given in changes), changes
    return {f"{graph[node]['class_type']}.{given}": v for (node, given), v in changes.items()}


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("official 40", PRESETS[0]),
        ("Official, 20 steps", PRESETS[1]),
        ("lightning 8", PRESETS[2]),
        ("light 4", PRESETS[3]),
        ("real", PRESETS[4]),
    ],
)
def test_a_preset_is_found_by_its_words(wanted: str, meant: str) -> None:
    assert realistic.choose_preset(wanted, PRESETS) == meant


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("lightning", r"several presets\. Next step: take one of Lightning, 8 .*; Lightning, 4"),
        ("euler", "no preset 'euler'.*official, 40 steps; .*RealCharacters"),
        ("official 4", "no preset"),
    ],
)
def test_a_preset_that_is_not_clear_lists_those_that_it_may_be(wanted: str, message: str) -> None:
    presets = PRESETS if wanted != "official 4" else ["official, 20 steps"]
    with pytest.raises(UserError, match=message):
        realistic.choose_preset(wanted, presets)


@pytest.mark.parametrize(
    ("preset", "lightning"), [(None, False), ("official 20", False), ("Lightning, 8", True)]
)
def test_lightning_has_a_workflow_of_its_own(preset: str | None, lightning: bool) -> None:
    assert realistic.is_lightning(preset) == lightning
    for name in (realistic.USUAL, realistic.LIGHTNING):
        assert picture_job.file_of(name).is_file()


def test_nothing_is_changed_that_nobody_asked_for(tmp_path: Path) -> None:
    assert filled(run_of(tmp_path, ""), offered()) == {
        "QwenEditLoader.base": BASE,
        "QwenEditLoader.text_encoder": TEXT,
        "QwenEditLoader.vae": VAE,
        "ResultCaption.note": BASE,
    }


def test_what_was_asked_for_is_set(tmp_path: Path) -> None:
    run = run_of(tmp_path, "--seed 7 --size 768 --prompt photo --lora real")
    run.args.preset = "official 20"
    found = filled(run, offered(lora=["none", "realistic-v2.safetensors"]))
    assert found["EditPreset.preset"] == "official, 20 steps"
    assert found["EditPreset.prompt"] == "photo"
    assert found["KSampler.seed"] == 7
    assert found["PrepareImage.max_side"] == 768
    assert found["LoRAHotInject.lora"] == "realistic-v2.safetensors"


def test_an_official_folder_brings_its_own_parts(tmp_path: Path) -> None:
    found = filled(run_of(tmp_path, ""), offered(base=["Qwen/2511/"], text_encoder=[FOLDER]))
    assert found["QwenEditLoader.base"] == "Qwen/2511/"
    assert found["QwenEditLoader.text_encoder"] == found["QwenEditLoader.vae"] == FOLDER
    assert found["ResultCaption.note"] == "Qwen/2511"


def test_another_file_is_taken_where_it_is_the_only_one(tmp_path: Path) -> None:
    found = filled(
        run_of(tmp_path, ""), offered(base=["mine.safetensors"], vae=[FOLDER, "a.safetensors"])
    )
    assert found["QwenEditLoader.base"] == "mine.safetensors"
    assert found["QwenEditLoader.vae"] == "a.safetensors"


def test_of_several_models_one_must_be_named(tmp_path: Path) -> None:
    known = offered(base=["a.safetensors", "b.safetensors"])
    with pytest.raises(UserError, match=r"several models.*--model: a.safetensors, b.safetensors"):
        filled(run_of(tmp_path, ""), known)
    assert filled(run_of(tmp_path, "--model b"), known)["QwenEditLoader.base"] == "b.safetensors"


@pytest.mark.parametrize(("given", "entry"), [("text_encoder", "qwen-text"), ("vae", "qwen-vae")])
def test_a_part_that_is_missing_is_named_with_its_download(
    tmp_path: Path, given: str, entry: str
) -> None:
    with pytest.raises(UserError, match=f"weights download {entry}` .*huggingface.co.*Apache-2.0"):
        filled(run_of(tmp_path, ""), offered(**{given: [FOLDER]}))


@pytest.mark.parametrize(
    ("preset", "file", "entry"), [("lightning 4", FOUR, "4"), ("lightning 8", EIGHT, "8")]
)
def test_lightning_takes_the_lora_for_its_steps(
    tmp_path: Path, preset: str, file: str, entry: str
) -> None:
    run = run_of(tmp_path, "")
    run.args.preset = preset
    found = filled(run, offered(lora=["none", FOUR, EIGHT]), realistic.LIGHTNING)
    assert found["LoRAHotInject.lora"] == file
    with pytest.raises(UserError, match=f"{file}.*weights download lightning-{entry}`"):
        filled(run, offered(lora=["none"]), realistic.LIGHTNING)


def test_lightning_and_a_lora_of_ones_own_are_two(tmp_path: Path) -> None:
    run = run_of(tmp_path, "--lora mine")
    run.args.preset = "lightning 4"
    graph = workflow.load(picture_job.file_of(realistic.LIGHTNING))
    changes = realistic.loras(run, graph, offered(lora=["none", FOUR, "mine.safetensors"]))
    assert sorted(map(str, changes.values())) == sorted([FOUR, "mine.safetensors"])


@pytest.mark.parametrize("name", [realistic.USUAL, realistic.LIGHTNING])
def test_tiny_touches_no_real_weights(tmp_path: Path, name: str) -> None:
    found = filled(run_of(tmp_path, "--tiny"), offered(), name)
    assert found == {
        "QwenEditLoader.base": "realtoon-tiny/",
        "QwenEditLoader.text_encoder": FOLDER,
        "QwenEditLoader.vae": FOLDER,
        "LoRAHotInject.lora": "realtoon-tiny.safetensors",
        "ResultCaption.note": "small random weights: noise",
    }


@pytest.mark.parametrize(("version", "edition"), [("0.3.75", "2509"), ("0.5.0", "2511")])
def test_tiny_weights_are_made_once_and_fit_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, edition: str
) -> None:
    asked: list[list[str]] = []

    def call(python: Path, line: list[str]) -> str:
        asked.append(line)
        folder = Path(line[1])
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
        return "made"

    monkeypatch.setattr(realistic.weights, "call_loader", call)
    host, cache = host_in(tmp_path, version), tmp_path / "cache"
    models = realistic.make_tiny(host, cache)
    assert realistic.make_tiny(host, cache) == models
    [line] = asked
    assert line[0] == "tiny-qwen"
    assert line[line.index("--edition") + 1] == edition
    assert Path(line[1]) == models / "diffusers" / "realtoon-tiny"
    assert Path(line[line.index("--lora") + 1]).parent == models / "loras"
    # Not where `serve` and the real run look for models.
    assert cache / "models" not in models.parents


@pytest.mark.parametrize("by_link", [True, False])
def test_a_lora_from_anywhere_stands_in_a_models_folder_for_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_link: bool
) -> None:
    if not by_link:

        def refuse(*unused: object) -> None:
            raise OSError("another disk")

        monkeypatch.setattr(realistic.os, "link", refuse)
    source = tmp_path / "下载" / "real.safetensors"
    source.parent.mkdir()
    source.write_bytes(b"lora")
    with realistic.lora_folder(str(source), tmp_path) as [folder]:
        assert (folder / "loras" / "real.safetensors").read_bytes() == b"lora"
    assert not folder.exists()
    assert source.read_bytes() == b"lora"
    for name in (None, "in_models.safetensors"):
        with realistic.lora_folder(name, tmp_path) as none:
            assert none == []


@pytest.mark.parametrize(
    ("file", "there"),
    [
        ("diffusion_models/qwen.safetensors", True),
        ("unet/deep/own.SAFETENSORS", True),
        ("diffusers/Qwen-Image-Edit-2511/model_index.json", True),
        ("diffusers/Qwen/Qwen-Image-Edit-2511/model_index.json", True),
        ("diffusion_models/readme.txt", False),
        ("diffusion_models/qwen.safetensors.part", False),
        ("diffusers/model_index.json", False),
        ("text_encoders/qwen_2.5_vl_7b.safetensors", False),
    ],
)
@pytest.mark.parametrize("owned", [True, False])
def test_weights_are_looked_for_before_anything_is_made(
    tmp_path: Path, file: str, there: bool, owned: bool
) -> None:
    host, cache = host_in(tmp_path, owned=owned), tmp_path / "cache"
    path = (cache if owned else host.folder) / "models" / file
    path.parent.mkdir(parents=True)
    path.write_text("")
    if there:
        qwen_weights.require(host, cache)
        return
    with pytest.raises(UserError) as caught:
        qwen_weights.require(host, cache)
    assert str((cache if owned else host.folder) / "models") in str(caught.value)


def test_a_host_with_folders_of_its_own_is_asked_itself(tmp_path: Path) -> None:
    host = host_in(tmp_path, owned=False)
    host.folder.mkdir()
    (host.folder / "extra_model_paths.yaml").write_text("")
    qwen_weights.require(host, tmp_path / "cache")


def test_what_to_download_is_said_in_full() -> None:
    said = str(qwen_weights.missing(None, Path("cache")))
    entries = [catalog.find(name) for name in catalog.SETS["realistic"]]
    for entry in entries:
        assert entry is not None
        assert f"{entry.folder}/{entry.files[0].save_as}" in said
        assert entry.licence in said
    assert "`python run.py weights download realistic`" in said
    assert "20.53 GB" in said and "9.38 GB" in said and "253.8 MB" in said and "30.17 GB" in said
    assert "huggingface.co/Comfy-Org" in said
    assert "--tiny" in said and "noise" in said


def test_a_host_too_old_for_2511_is_told_what_it_can_run(tmp_path: Path) -> None:
    said = str(qwen_weights.missing(host_in(tmp_path, "0.3.75"), tmp_path))
    assert "weights download qwen-edit-2509`" in said
    assert "qwen-edit-2511" not in said and "2511_fp8" not in said
    assert "0.3.75 is older than 0.5.0" in said
    assert "older" not in str(qwen_weights.missing(host_in(tmp_path, "0.5.0"), tmp_path))


def test_help_names_every_wish(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments.build().parse_args(["realistic", "--help"])
    said = capsys.readouterr().out
    for wish in ("ART", "--preset", "--prompt", "--seed", "--size", "--lora", "--out", "--tiny"):
        assert wish in said
