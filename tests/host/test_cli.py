"""The command line as people run it: as a process, on a real ComfyUI, without a network."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import comfy_hosts
import numpy as np
import pytest
import torch
from graphs import gpen_weights, write_qwen
from PIL import ExifTags, Image
from realtoon.host import (
    arguments,
    environment,
    face_weights,
    paths,
    pictures,
    requirements,
    workflow,
)
from realtoon.weights_loader import qwen_tiny, safetensors_file

RUN = comfy_hosts.ROOT / "run.py"
REALISTIC = comfy_hosts.ROOT / "workflows" / "api" / "realistic_1024_lightning.json"
# Whatever asks the network gets an error at once.
NO_NETWORK = {
    **{f"{kind}_PROXY": "http://127.0.0.1:9" for kind in ("HTTP", "HTTPS", "ALL")},
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_NO_INDEX": "1",
}


def command(host, *line):
    """run.py's command line; where its environment is not made yet, this Python stands in for it.

    `python run.py test` makes it, so there the whole way is tested.
    """
    cache = paths.cache_folder()
    owner = "" if host.owned else str(host.folder)
    digest = environment._digest(requirements.of_host(host.folder))
    if environment._find(cache, owner, digest):
        return [sys.executable, str(RUN), *line]
    handover = {"cache": str(cache), "host": host.to_json(), "seconds": {}}
    return [sys.executable, str(RUN), "--handover", json.dumps(handover), *line]


def run(host, folder, *line, limit_s=500):
    """Run to the end in a folder; returns (exit code, stdout, stderr)."""
    result = subprocess.run(
        command(host, *map(str, line)),
        cwd=folder,
        env={**os.environ, **NO_NETWORK},
        capture_output=True,
        text=True,
        timeout=limit_s,
    )
    return result.returncode, result.stdout, result.stderr


def assert_refused(result, message):
    code, _, err = result
    assert code == 1, err
    assert re.search(message, err), err
    assert "Next step: " in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def photo(tmp_path):
    """A portrait-sized gradient that a camera held sideways."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "sideways.jpg"
    wide = Image.linear_gradient("L").resize((200, 120))
    Image.merge("RGB", (wide, wide.rotate(180), wide)).save(path, exif=exif)
    return path


def test_the_astronaut_becomes_a_cartoon(host, tmp_path):
    from skimage import data

    port = arguments.free_port()
    code, out, err = run(host, tmp_path, "cartoon", "--port", port)
    assert code == 0, err
    target = tmp_path / "astronaut_cartoon.png"
    assert f"Saved {target} (512×512" in out
    assert re.search(r"Seconds: .*environment.*start.*run.*save.* = \d", out) or "start" in out
    assert not listens(port)
    assert list(tmp_path.iterdir()) == [target]
    drawn = np.asarray(Image.open(target).convert("RGB"), dtype=float)
    source = data.astronaut().astype(float)
    # A cartoon of this very picture: changed everywhere a little, nowhere moved.
    assert 2 < np.abs(drawn - source).mean() < 80
    low = [
        np.asarray(Image.fromarray(p.astype("uint8")).resize((8, 8)).convert("L"), dtype=float)
        for p in (drawn, source)
    ]
    assert np.corrcoef(low[0].ravel(), low[1].ravel())[0, 1] > 0.9
    texts = pictures.texts_of(target.read_bytes())
    assert "DCTNetCartoon" in texts["prompt"]
    assert texts["Description"].startswith("Style: ")


def test_a_sideways_photo_becomes_an_upright_small_jpg(host, photo, tmp_path):
    target = tmp_path / "made" / "out.jpg"
    line = ["cartoon", photo, "--out", target, "--size", "100", "--no-faces", "--strength", "0.5"]
    code, out, err = run(host, tmp_path, *line)
    assert code == 0, err
    with Image.open(target) as got:
        assert (got.format, got.size) == ("JPEG", (60, 100))
    graph = json.loads(pictures.texts_of(target.read_bytes())["prompt"])
    [node] = workflow.of_class(graph, "DCTNetCartoon")
    inputs = graph[node]["inputs"]
    assert (inputs["style_strength"], inputs["face_pass"]) == (0.5, False)


def test_an_unknown_style_lists_the_known_ones(host, photo, tmp_path):
    port = arguments.free_port()
    result = run(host, tmp_path, "cartoon", photo, "--style", "oil", "--port", port)
    assert_refused(result, r"no style 'oil'\. Next step: take one of .*cel")
    assert not listens(port)
    assert list(tmp_path.iterdir()) == [photo]


def restore(host, folder, cache, *line, limit_s=500, verb="restore"):
    """`run.py restore` with the weights that lie in a cache folder of the test's own, no others."""
    owned = {**host.to_json(), "owned": True}
    handover = {"cache": str(cache), "host": owned, "seconds": {}}
    start = [sys.executable, str(RUN), "--handover", json.dumps(handover), verb]
    result = subprocess.run(
        [*start, *map(str, line)],
        cwd=folder,
        env={**os.environ, **NO_NETWORK},
        capture_output=True,
        text=True,
        timeout=limit_s,
    )
    return result.returncode, result.stdout, result.stderr


@pytest.fixture(scope="module")
def with_gpen(tmp_path_factory):
    """A cache folder with a small generator of random weights under the usual name."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / "models" / "gpen").mkdir(parents=True)
    state = gpen_weights.state(gpen_weights.TINY, 1, kernels=True)
    torch.save(state, cache / "models" / "gpen" / "GPEN-BFR-512.pth")
    return cache


def test_restoring_without_weights_is_refused_before_the_host_starts(host, photo, tmp_path):
    cache = tmp_path / "cache"
    result = restore(host, tmp_path, cache, photo, limit_s=60)
    assert_refused(result, r"no GPEN weights in .*gpen\. .*python run.py weights download gpen-512")
    assert not cache.exists()


def test_other_packs_weights_are_not_taken_for_gpens(host, photo, tmp_path):
    folder = tmp_path / "cache" / "models" / "facerestore_models"
    folder.mkdir(parents=True)
    torch.save({"params_ema": {"conv.weight": torch.zeros(3, 3)}}, folder / "GFPGANv1.4.pth")
    result = restore(host, tmp_path, tmp_path / "cache", photo, "--mode", "tiled")
    assert_refused(result, "no GPEN weights in .*python run.py weights download gpen-512")


def test_restoring_faces_without_a_detector_is_refused_before_the_host_starts(
    host, photo, tmp_path, with_gpen
):
    result = restore(host, tmp_path, with_gpen, photo, limit_s=60)
    assert_refused(result, r"no face detector: .*weights faces.*--mode tiled")


def test_a_whole_picture_is_restored(host, photo, tmp_path, with_gpen):
    line = [photo, "--mode", "tiled", "--strength", "0.5", "--skin-smooth", "0.25"]
    line += ["--model", "gpen-bfr", "--max-faces", "3", "--size", "100"]
    code, out, err = restore(host, tmp_path, with_gpen, *line)
    assert code == 0, err
    target = tmp_path / "sideways_restored.png"
    assert f"Saved {target} (60×100" in out
    assert "model: GPEN-BFR-512.pth, 256 px" in out
    texts = pictures.texts_of(target.read_bytes())
    graph = json.loads(texts["prompt"])
    [node] = workflow.of_class(graph, "GPENRestore")
    wanted = {"strength": 0.5, "skin_smooth": 0.25, "mode": "tiled", "max_faces": 3}
    assert wanted.items() <= graph[node]["inputs"].items()
    assert texts["Description"].startswith("Model: GPEN-BFR-512.pth, Strength: 0.5, ")


def test_a_face_is_restored_and_nothing_else(host, tmp_path, with_gpen):
    from skimage import data

    there = face_weights.present([paths.cache_folder() / "models", host.folder / "models"])
    if there is None:
        pytest.skip("no face detector: run `python run.py weights faces`")
    cache = tmp_path / "cache"
    shutil.copytree(with_gpen / "models" / "gpen", cache / "models" / "gpen")
    shutil.copytree(there.parent, cache / "models" / there.parent.name)
    source = tmp_path / "astronaut.png"
    Image.fromarray(data.astronaut()).save(source)
    code, out, err = restore(host, tmp_path, cache, source)
    assert code == 0, err
    assert "faces: 1" in out
    before = np.asarray(Image.open(source)).astype(int)
    after = np.asarray(Image.open(tmp_path / "astronaut_restored.png").convert("RGB")).astype(int)
    changed = np.abs(after - before).max(axis=2) > 0
    # Her face is in the upper middle; random weights draw something else there.
    assert changed[80:140, 190:260].mean() > 0.9
    assert not changed[260:].any()
    assert not changed[:, 380:].any()


def test_realistic_without_weights_says_what_to_download(host, photo, tmp_path):
    cache = tmp_path / "cache"
    result = restore(host, tmp_path, cache, photo, verb="realistic", limit_s=60)
    assert_refused(
        result,
        r"no Qwen-Image-Edit in .*models\. .*python run.py weights download .*text_encoders/"
        r"qwen_2.5_vl_7b_fp8_scaled.safetensors \(9.38 GB\).*huggingface.co.*Apache-2.0.*--tiny",
    )
    assert not cache.exists()


def test_other_models_are_not_taken_for_qwens(host, photo, tmp_path):
    folder = tmp_path / "cache" / "models" / "diffusion_models"
    folder.mkdir(parents=True)
    safetensors_file.write(folder / "flux.safetensors", {"weight": torch.zeros(3)}, {})
    result = restore(host, tmp_path, tmp_path / "cache", photo, verb="realistic")
    assert_refused(result, "no Qwen-Image-Edit in .*python run.py weights download ")


def test_the_realistic_workflow_runs_on_small_weights(host, photo, tmp_path):
    target = tmp_path / "noise.jpg"
    line = [photo, "--tiny", "--size", "96", "--preset", "lightning 4", "--seed", "5"]
    line += ["--prompt", "a photo", "--out", target]
    code, out, err = restore(host, tmp_path, tmp_path / "cache", *line, verb="realistic")
    assert code == 0, err
    # 120×200 upright, scaled to 58×96, padded for the model, and the padding taken off again.
    assert f"Saved {target} (58×96" in out
    assert "random weights in the layout of" in out
    assert "the picture is noise" in out
    assert "4 steps, CFG 1.0" in out
    with Image.open(target) as got:
        assert got.size == (58, 96)
        assert np.asarray(got).std() > 5
    texts = pictures.texts_of(target.read_bytes())
    assert texts["Description"].startswith("Resolution: 58×96 | CFG: 1.0 | Steps: 4 | Weight: ")
    assert "random weights" in texts["Description"]
    graph = json.loads(texts["prompt"])
    [preset] = workflow.of_class(graph, "EditPreset")
    assert graph[preset]["inputs"]["prompt"] == "a photo"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("words.png", b"these are words", "words.png is not a picture"),
        ("cut.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF", "cut.jpg is "),
        ("phone.heic", b"\0\0\0\x18ftypheic", "save the photo as JPG or PNG"),
    ],
)
def test_what_is_no_photo_is_refused_before_the_host_starts(host, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    result = run(host, tmp_path, "cartoon", name, limit_s=60)
    assert_refused(result, message)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_bad_workflow_is_refused_before_the_host_starts(host, tmp_path):
    (tmp_path / "ui.json").write_text('{"nodes": [], "links": []}')
    assert_refused(run(host, tmp_path, "queue", "ui.json"), r"Export \(API\)")


def test_a_host_that_dies_is_one_line(host, photo, tmp_path):
    # Only its own folder is ours to break: a ComfyUI whose main.py cannot start.
    broken = tmp_path / "broken"
    for name in ("main.py", "nodes.py", "folder_paths.py", "comfyui_version.py"):
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_text("")
    (broken / "comfy").mkdir()
    (broken / "comfy" / "cli_args.py").write_text("")
    (broken / "main.py").write_text("raise RuntimeError('no card')\n")
    handover = {"folder": str(broken), "version": "0.33.0", "origin": "test", "owned": True}
    line = [
        "--handover",
        json.dumps({"cache": str(paths.cache_folder()), "host": handover, "seconds": {}}),
        "cartoon",
        str(photo),
        "--no-faces",
    ]
    result = subprocess.run(
        [sys.executable, str(RUN), *line], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert_refused(
        (result.returncode, result.stdout, result.stderr),
        r"ended with code 1: RuntimeError: no card\. Next step: read its log",
    )


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_being_ended_leaves_nothing(host, photo, tmp_path, number):
    port = arguments.free_port()
    process = subprocess.Popen(
        command(host, "cartoon", str(photo), "--port", str(port)),
        cwd=tmp_path,
        env={**os.environ, **NO_NETWORK},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    for line in process.stdout:
        if line.startswith("Starting ComfyUI"):
            break
    time.sleep(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "Stopped.\n"
    assert not listens(port)
    assert list(tmp_path.iterdir()) == [photo]


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
def test_serve_prints_its_address_and_ends(host, tmp_path):
    port = arguments.free_port()
    process = subprocess.Popen(
        command(host, "serve", "--port", str(port)),
        cwd=tmp_path,
        env={**os.environ, **NO_NETWORK},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    assert f"ComfyUI: http://127.0.0.1:{port}\n" in lines, lines
    assert listens(port)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert not listens(port)


def queue(comfy, folder, *line):
    line = ["queue", comfy_hosts.CARTOON, "--server", comfy.url, *line]
    return run(comfy.server.host, folder, *line)


def test_several_pictures_are_several_jobs(comfy, photo, tmp_path):
    second = tmp_path / "second.png"
    Image.new("RGB", (50, 40), "teal").save(second)
    line = ["--input", photo, second, "--set", "DCTNetCartoon.face_pass=false"]
    line += ["--set", "SaveImage.filename_prefix=cli", "--out", tmp_path / "out"]
    line += ["--format", "webp"]
    code, out, err = queue(comfy, tmp_path, *line)
    assert code == 0, err
    assert "1/2 " in out
    assert "2/2 " in out
    made = sorted((tmp_path / "out").iterdir())
    assert [re.sub(r"\d+", "N", path.name) for path in made] == [
        "second_cli_N_.webp",
        "sideways_cli_N_.webp",
    ]
    assert [Image.open(path).size for path in made] == [(50, 40), (120, 200)]
    # The same again keeps both.
    assert queue(comfy, tmp_path, *line)[0] == 0
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.fixture(scope="module")
def with_loras(host, tmp_path_factory):
    """A ComfyUI of its own with a small Qwen-Image-Edit and two versions of a LoRA for it."""
    models = tmp_path_factory.mktemp("more") / "models"
    write_qwen(models, host)
    for seed, name in enumerate(("art_v0715", "art_v0801"), start=1):
        qwen_tiny.write_lora(models / "loras" / f"{name}.safetensors", seed)
    with comfy_hosts.started(host, model_folders=[models]) as running:
        yield running


def sweep(comfy, folder, photo, *values):
    """The realistic workflow with these values; (exit code, stdout, stderr)."""
    line = ["queue", REALISTIC, "--server", comfy.url, "--input", photo, "--out", folder / "out"]
    sets = [part for each in ("Prepare.max_side=64", *values) for part in ("--set", each)]
    return run(comfy.server.host, folder, *line, *sets)


@pytest.mark.parametrize("node", ["LoRA", "5"], ids=["by title", "by id"])
def test_values_of_one_input_are_swept(with_loras, photo, tmp_path, node):
    names = ["none", "art_v0715", "art_v0801"]
    values = [f"{node}.lora={name}.safetensors" for name in names[1:]]
    code, out, err = sweep(with_loras, tmp_path, photo, f"{node}.lora=none", *values)
    assert code == 0, err
    assert "3/3 " in out
    made = {path.name.split("_realistic")[0]: path for path in (tmp_path / "out").iterdir()}
    assert sorted(made) == [f"sideways_{name}" for name in sorted(names)]
    drawn = {}
    for name in names:
        path = made[f"sideways_{name}"]
        texts = pictures.texts_of(path.read_bytes())
        [told] = re.findall(r"\| Weight: ([^|]*)", texts["Description"])
        # The workflow's own LoRA for few steps stands before it.
        assert re.findall(r"art_v\d+", told) == [name][name == "none" :], told
        [lora] = [n for n in json.loads(texts["prompt"]).values() if n["_meta"]["title"] == "LoRA"]
        assert lora["inputs"]["lora"].removesuffix(".safetensors") == name
        drawn[name] = np.asarray(Image.open(path).convert("RGB")).astype(int)
    pairs = [("none", "art_v0715"), ("none", "art_v0801"), ("art_v0715", "art_v0801")]
    assert all((drawn[one] != drawn[other]).any() for one, other in pairs)


def test_a_sweep_over_a_file_that_is_not_there_is_refused(with_loras, photo, tmp_path):
    values = ("LoRA.lora=none", "LoRA.lora=art_v9.safetensors")
    result = sweep(with_loras, tmp_path, photo, *values)
    assert_refused(result, r"refused: node 5 \(LoRA\): .*art_v9\.safetensors")
    assert not (tmp_path / "out").exists()


def test_a_value_that_the_host_refuses_is_told_by_node(comfy, photo, tmp_path):
    line = ["--input", photo, "--out", tmp_path / "out", "--set"]
    result = queue(comfy, tmp_path, *line, "DCTNetCartoon.style_strength=7")
    assert_refused(result, r"refused: node \w+ \(.*style_strength")
    result = queue(comfy, tmp_path, *line, "DCTNetCartoon.colour=7")
    assert_refused(result, r"no input 'colour'\. Next step: name one of image, style")
    result = queue(comfy, tmp_path, *line, "KSampler.seed=7")
    assert_refused(result, "no node 'KSampler'")
    assert not (tmp_path / "out").exists()


def test_a_server_that_is_not_there(host, tmp_path):
    line = ["queue", comfy_hosts.CARTOON, "--server", "127.0.0.1:9"]
    assert_refused(run(host, tmp_path, *line), "http://127.0.0.1:9 does not answer")


def test_a_cancelled_job_leaves_the_queue(comfy):
    graph = workflow.load(comfy_hosts.CARTOON)
    [loader] = workflow.of_class(graph, "LoadImage")
    [prepare] = workflow.of_class(graph, "PrepareImage")
    name = comfy.upload(Image.effect_noise((2400, 2400), 60).convert("RGB"), "large.png")
    changes = {(loader, "image"): name, (prepare, "max_side"): 0}
    graph = workflow.with_inputs(graph, changes)
    twice = [graph, workflow.with_inputs(graph, {(prepare, "max_side"): 2300})]
    started = []

    async def cancelled(client):
        work = asyncio.create_task(client.run(twice, started.append))
        while not any(update.title == "" or update.fraction > 0.2 for update in started):
            await asyncio.sleep(0.05)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        ends = time.monotonic() + 15
        while time.monotonic() < ends:
            left = await client._json("GET", "/queue")
            if not left["queue_running"] and not left["queue_pending"]:
                return True
            await asyncio.sleep(0.2)
        return False

    assert comfy.do(cancelled)
