"""Whatever is not exactly a GPEN generator is refused by name and reason, fast, without cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import gpen_weights as gw
import pytest
import torch
import weights_cases
import weights_files as wf
from gpen_cases import CASES, W, same, shapes_only
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from realtoon.weights_loader import __main__ as entry_point
from realtoon.weights_loader import files, gpen, gpen_layout, networks
from realtoon.weights_loader.errors import WeightsError
from realtoon.weights_loader.gpen import GPENConfig

_settings = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def state() -> gw.Tensors:
    return gw.state(gw.TINY, 3, kernels=True)


def refuse(
    read: Callable[[Path], object], path: Path, message: str, ran: Path, limit_s: float = 1.0
) -> None:
    """Checks what is said, and that it is said in a second."""
    seconds: list[float] = []
    # A machine that is busy with something else gets three tries.
    while len(seconds) < 3 and not any(taken < limit_s for taken in seconds):
        start = time.perf_counter()
        with pytest.raises(WeightsError) as caught:
            read(path)
        seconds.append(time.perf_counter() - start)
    said = str(caught.value)
    assert said.startswith(f"{path.name}: expected ")
    assert message in said
    assert "Next step: " in said
    assert said.isprintable()
    assert not ran.exists(), "code of the file was run"
    assert min(seconds) < limit_s


def made(name: str, cases: dict[str, tuple[str, str, weights_cases.Build]], folder: Path) -> Path:
    ending, _, build = cases[name]
    path = folder / f"坏的 GPEN-BFR-512{ending}"
    try:
        build(path)
    except (AttributeError, NotImplementedError, OSError) as error:
        pytest.skip(f"this system cannot make the case: {error}")
    return path


@pytest.mark.parametrize("name", CASES)
def test_is_refused_by_name_and_reason_in_a_second(name: str, tmp_path: Path) -> None:
    refuse(gpen.read, made(name, CASES, tmp_path), CASES[name][1], tmp_path / "ran")


@pytest.mark.parametrize("name", weights_cases.CASES)
def test_what_is_no_style_is_no_generator_either(name: str, tmp_path: Path) -> None:
    path = made(name, weights_cases.CASES, tmp_path)
    refuse(gpen.read, path, "", tmp_path / "ran")
    refuse(gpen.config_of, path, "", tmp_path / "ran")


@pytest.mark.parametrize("name", CASES)
def test_is_refused_before_memory_is_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(name, CASES, tmp_path)
    read_bytes = 0
    real = files.read_at

    def counted(path: Path, offset: int, length: int) -> bytes:
        nonlocal read_bytes
        read_bytes += length
        return real(path, offset, length)

    monkeypatch.setattr(files, "read_at", counted)
    with pytest.raises(WeightsError):
        gpen.read(path)
    # What is wrong with the numbers themselves is only found by reading them.
    late = any(word in CASES[name][1] for word in ("numbers in final", "a view of"))
    assert read_bytes < (12 << 20 if late else 2 << 20)


def test_of_a_training_checkpoint_the_generator_alone_is_read(
    state: gw.Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "training.pth"
    whole = gw.training(state)
    whole["g_optim"] = {"state": {0: {"exp_avg": torch.zeros(25_000_000)}}}
    path.write_bytes(wf.torch_bytes(whole))
    own = 4 * sum(tensor.numel() for tensor in state.values())
    assert path.stat().st_size > 11 * own
    read_bytes = 0
    real = files.read_at

    def counted(path: Path, offset: int, length: int) -> bytes:
        nonlocal read_bytes
        read_bytes += length
        return real(path, offset, length)

    monkeypatch.setattr(files, "read_at", counted)
    assert same(gpen.read(path)[1], gw.without_kernels(state))
    assert read_bytes < own + (1 << 20)


def test_the_largest_training_checkpoint_fits_the_pickles_limit(tmp_path: Path) -> None:
    """2048 pixels, two networks, two optimisers with three tensors a parameter."""
    config = GPENConfig(2048, (1,) * 10)
    names = [name for name, _, _ in gw.layout(config)]
    small = {name: torch.zeros(1) for name in names}
    whole = {"g": small, "d": gw.discriminator(2048, 1), "g_ema": small}
    for network in ("g", "d"):
        moments = {"step": 1, "exp_avg": 2, "exp_avg_sq": 3}
        states = [{key: torch.zeros(1) for key in moments} for _ in whole[network]]
        whole[f"{network}_optim"] = {"state": dict(enumerate(states)), "param_groups": []}
    path = tmp_path / "training.pth"
    path.write_bytes(wf.torch_bytes(whole))
    # It gets as far as the shapes, which are not the network's.
    refuse(gpen.read, path, "style vectors of 512 numbers", tmp_path / "ran")


def test_a_damaged_tensor_is_noticed(state: gw.Tensors, tmp_path: Path) -> None:
    whole = bytearray(wf.torch_bytes(state))
    at = bytes(whole).index(wf.raw(state[W])[:64])
    whole[at + 1000] ^= 1
    path = tmp_path / "gpen.pth"
    path.write_bytes(whole)
    with pytest.raises(WeightsError, match="the check sum of data/"):
        gpen.read(path)


@settings(_settings, max_examples=150)
@given(
    position=st.integers(0, 10**9),
    change=st.binary(min_size=1, max_size=8),
    legacy=st.sampled_from([True, False, None]),
)
def test_damaged_files_never_break(
    position: int, change: bytes, legacy: bool | None, tmp_path: Path
) -> None:
    """Damage where the structure is: names, lengths, headers, indexes."""
    small = {name: torch.zeros(1) for name, _, _ in gw.layout(gw.TINY)[:24]}
    data = bytearray(
        wf.safetensors_bytes(small) if legacy is None else wf.torch_bytes({"g_ema": small}, legacy)
    )
    at = position % len(data)
    data[at : at + len(change)] = change
    path = tmp_path / "fuzz"
    path.write_bytes(data)
    for read in (gpen.read, networks.which):
        try:
            read(path)
        except WeightsError as error:
            assert str(error).isprintable()


def test_the_limits_are_what_the_documents_say() -> None:
    assert gpen.LIMIT_CHECKPOINT_BYTES == 2 << 30
    largest = sum(map(math.prod, gpen.shapes(gw.published(2048)).values()))
    assert 8 * largest < gpen.LIMIT_BYTES
    assert gpen_layout.MAX_WIDTH >= 512


@settings(_settings, max_examples=60)
@given(data=st.data())
def test_any_wrong_shape_is_refused(data: st.DataObject, tmp_path: Path) -> None:
    """One tensor of another shape is another network, whichever it is."""
    name, kind, shape = data.draw(st.sampled_from(gw.layout(gw.TINY)))
    axis = data.draw(st.integers(0, len(shape) - 1))
    other = data.draw(st.integers(0, 2 * shape[axis] + 1).filter(lambda n: n != shape[axis]))
    changed = (*shape[:axis], other, *shape[axis + 1 :])
    path = shapes_only(gw.TINY, tmp_path / "gpen.safetensors", **{name: changed})
    with pytest.raises(WeightsError):
        gpen.read(path)


# --- which network -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "got"),
    [
        (lambda: wf.torch_bytes(gw.discriminator()), "a GPEN discriminator"),
        (lambda: wf.safetensors_bytes({"lora_A": torch.zeros(4)}), "another network (1 tensors"),
        (lambda: wf.torch_bytes({"stylegan_decoder.x": torch.zeros(4)}), "a GFPGAN restorer"),
    ],
)
def test_the_converter_names_what_it_expected(
    build: Callable[[], bytes], got: str, tmp_path: Path
) -> None:
    source = tmp_path / "GPEN-BFR-512.pth"
    source.write_bytes(build())

    def convert(path: Path) -> None:
        entry_point.run(["convert", str(path), str(tmp_path / "x.safetensors")])

    refuse(convert, source, got, tmp_path / "ran")
    with pytest.raises(WeightsError, match="a DCT-Net style, a GPEN generator or a ParseNet"):
        convert(source)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
