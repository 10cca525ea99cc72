"""What no LoRA can be, or none for this model, is refused by name and reason within a second."""

from __future__ import annotations

import time
from pathlib import Path

import lora_files as lf
import pytest
import torch
import weights_files as wf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_hostile_cases import CASES, MODULES, links_work
from realtoon.weights_loader import lora
from realtoon.weights_loader.errors import WeightsError

_settings = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.parametrize("name", CASES)
def test_refused_by_name_and_reason(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case.links and not links_work(tmp_path):
        pytest.skip("no symbolic links here")
    path = tmp_path / "洛拉 α.safetensors"
    case.build(path)
    started = time.process_time()
    with pytest.raises(WeightsError) as caught:
        lora.read(path, MODULES)
    assert time.process_time() - started < 1
    said = str(caught.value)
    assert case.message in said
    assert said.startswith("洛拉 α.safetensors: expected ") and "Next step: " in said
    assert said.isprintable() and len(said) < 1500
    assert not (tmp_path / "ran").exists()


def test_there_are_forty_kinds() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.no_lora])
def test_describing_refuses_the_same_files(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case.links and not links_work(tmp_path):
        pytest.skip("no symbolic links here")
    path = tmp_path / "a.safetensors"
    case.build(path)
    with pytest.raises(WeightsError) as caught:
        lora.describe(path)
    assert case.message in str(caught.value)


def test_a_file_that_changed_since_its_header_was_read_is_refused(tmp_path: Path) -> None:
    from realtoon.weights_loader import lora_source

    path = lf.write(tmp_path / "a.safetensors", lf.lora(MODULES))
    source = lora_source.open_source(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    for mapped in (True, False):
        with pytest.raises(WeightsError, match=r"expected the [\d,]+ bytes it had"):
            source.load(source.entries, mapped)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16,
                                   torch.float8_e4m3fn, torch.float8_e5m2])  # fmt: skip
@pytest.mark.parametrize("value", ["nan", "-nan", "inf", "-inf"])
def test_one_number_that_is_not_finite_is_found(dtype, value: str, tmp_path: Path) -> None:  # noqa: ANN001
    if dtype == torch.float8_e4m3fn and "inf" in value:
        pytest.skip("float8_e4m3fn has no infinity")
    tensors = lf.lora(MODULES, rank=3, dtype=dtype)
    key = "diffusion_model.transformer_blocks.0.attn.to_k.lora_B.weight"
    worst = torch.finfo(dtype).max
    for other in tensors.values():
        other[0, 0], other[-1, -1] = worst, -worst
    path = lf.write(tmp_path / "a.safetensors", tensors)
    assert lora.read(path, MODULES).coverage.complete
    bad = torch.tensor(float(value.lstrip("-")))
    tensors[key][7, 1] = (-bad if value.startswith("-") else bad).to(dtype)
    lf.write(path, tensors)
    for mapped in (True, False):
        with pytest.raises(WeightsError, match=f"finite numbers in {key}, got NaN or infinity"):
            lora.read(path, MODULES, mapped)


@given(data=st.data())
@_settings
def test_whatever_is_done_to_a_file_it_is_read_or_refused(
    data: st.DataObject, tmp_path: Path
) -> None:
    """Bytes of the header and after it are changed at random: no other error, no crash."""
    whole = bytearray(wf.safetensors_bytes(lf.lora({"img_in": (16, 8)}, "kohya, musubi")))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        whole[: data.draw(st.integers(1, len(whole)))] if data.draw(st.booleans()) else whole
    )
    try:
        found = lora.read(path, MODULES)
    except WeightsError as refused:
        assert str(refused).isprintable()
    else:
        assert found.adapters


@given(text=st.text(max_size=40), tail=st.sampled_from([".lora_A.weight", ".alpha", ".diff", ""]))
@_settings
def test_any_key_is_accounted_for(text: str, tail: str, tmp_path: Path) -> None:
    tensors = lf.lora({"img_in": (16, 8)})
    tensors.setdefault(text + tail, torch.ones(2, 8))
    path = lf.write(tmp_path / "a.safetensors", tensors)
    try:
        c = lora.read(path, MODULES).coverage
    except WeightsError as refused:
        assert str(refused).isprintable()
    else:
        assert c.used_keys + c.unfit_keys + len(c.unmatched) + len(c.text_encoder) == len(tensors)
        assert "\n".join(c.told())
