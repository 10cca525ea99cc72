"""The official names become the ones that ComfyUI's own modules load strictly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import comfy_hosts
import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "unit"))
import qwen_weights  # noqa: E402  (the makers of tiny weights lie with the unit tests)

LOADING = Path(__file__).with_name("load_qwen_keys.py")
HOSTS = comfy_hosts.at_hand()


@pytest.mark.parametrize("each", HOSTS or [None], ids=[f"comfyui-{h.version}" for h in HOSTS])
def test_comfyuis_modules_load_the_official_folder_strictly(each, tmp_path: Path) -> None:
    if each is None:
        pytest.skip(comfy_hosts.NONE)
    folder = qwen_weights.write_official(tmp_path / "official")
    base = tmp_path / "base"
    base.mkdir()
    done = subprocess.run(
        [sys.executable, str(LOADING), str(each.folder), str(base), str(folder)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    knows_2511 = found["dit"] == 78
    method = "index_timestep_zero" if knows_2511 else None
    assert found["detected"] == ["qwen_image", 64, 2, method, "QWEN25_7B"]
    assert (found["dit"], found["text"], found["vae"]) == (77 + knows_2511, 56, 194)
    # The host's modules at the official sizes have exactly our names and shapes.
    assert all(found[f"official {kind}"] is True for kind in ("dit", "text", "vae"))
