"""The small Qwen-Image-Edit that is made on the spot: read by the same loader as the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from realtoon.weights_loader import __main__ as entry_point
from realtoon.weights_loader import catalog, qwen_image, qwen_tiny, safetensors_file
from realtoon.weights_loader.errors import WeightsError

ROOT = Path(catalog.__file__).resolve().parent.parent
SMALL = qwen_tiny.Sizes()


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(("edition", "release"), [("2511", "2511"), ("2509", "2509")])
def test_the_loader_takes_it_for_the_official_folder(
    tmp_path: Path, edition: str, release: str
) -> None:
    found = qwen_image.describe_base(qwen_tiny.write(tmp_path / edition, edition, sizes=SMALL))
    assert release in found.release
    assert found.dit.layout == "official"
    assert isinstance(found.dit.config, qwen_image.DiTConfig)
    assert found.dit.config.zero_cond_t == (edition == "2511")
    assert found.text is not None and found.vae is not None
    qwen_image.check_fit(found.dit, found.text, found.vae)
    for part in (found.dit, found.text, found.vae):
        state = qwen_image.state(part)
        assert all(tensor.isfinite().all() for tensor in state.values() if tensor.numel())


def test_the_first_edition_is_another_pipeline(tmp_path: Path) -> None:
    folder = qwen_tiny.write(tmp_path, "2508", sizes=SMALL)
    assert '"QwenImageEditPipeline"' in (folder / "model_index.json").read_text("utf-8")
    assert '"zero_cond_t"' not in (folder / "transformer/config.json").read_text("utf-8")


def test_an_edition_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="an edition of 2511, 2509, 2508, got '2510'"):
        qwen_tiny.write(tmp_path / "x", "2510")
    assert not (tmp_path / "x").exists()


def test_its_vocabulary_is_that_of_the_hosts_tokenizer_and_it_is_small(tmp_path: Path) -> None:
    written = files(qwen_tiny.write(tmp_path))
    assert sum(map(len, written.values())) < 40_000_000
    found = qwen_image.describe_base(tmp_path)
    assert found.text is not None
    assert isinstance(found.text.config, qwen_image.TextConfig)
    assert found.text.config.vocabulary == 152064


def test_a_seed_gives_the_same_bytes_and_another_other_weights(tmp_path: Path) -> None:
    first = files(qwen_tiny.write(tmp_path / "a", seed=3, sizes=SMALL))
    again = files(qwen_tiny.write(tmp_path / "b", seed=3, sizes=SMALL))
    other = files(qwen_tiny.write(tmp_path / "c", seed=4, sizes=SMALL))
    assert first == again
    changed = {name for name in first if first[name] != other[name]}
    assert changed == {name for name in first if name.endswith(".safetensors")}


def test_a_lora_names_layers_of_the_model(tmp_path: Path) -> None:
    file = qwen_tiny.write_lora(tmp_path / "loras" / "one.safetensors")
    found = safetensors_file.scan(file, 1 << 20, mapped=True).tensors
    layers = {name.partition(".lora_")[0].removesuffix(".alpha") for name in found}
    model = qwen_tiny.transformer()
    assert len(layers) == 8
    for layer in layers:
        rows, columns = model[f"{layer}.weight"].shape
        assert found[f"{layer}.lora_down.weight"].shape == (4, columns)
        assert found[f"{layer}.lora_up.weight"].shape == (rows, 4)
        assert found[f"{layer}.alpha"].shape == ()


def test_it_is_made_by_the_module_that_the_command_line_calls(tmp_path: Path) -> None:
    folder, lora = tmp_path / "小", tmp_path / "loras" / "tiny.safetensors"
    done = subprocess.run(
        [sys.executable, "-m", "weights_loader", "tiny-qwen", str(folder), "--edition", "2509",
         "--lora", str(lora)],
        cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("小: random weights in the layout of 2509, ")
    assert lora.is_file()
    assert "2509" in qwen_image.describe_base(folder).release


def test_what_the_module_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["weights_loader", "tiny-qwen", str(tmp_path / "x"), "--edition", "7"]
    )
    assert entry_point.main() == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "expected an edition of 2511" in said.err
