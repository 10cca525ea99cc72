"""A real ComfyUI with its front end, and a browser on it.

Every host at hand is tested with the front end that its requirements.txt pins, if that is installed
here or lies in a folder of REALTOON_TEST_FRONT_ENDS (made by `pip install --no-deps --target
FOLDER comfyui-frontend-package==VERSION`, separated as in PATH); else with the installed one.
"""

import io
import os
import re
import sys
from importlib import metadata
from pathlib import Path

import comfy_hosts
import numpy as np
import pytest
from PIL import Image

# What writes weights of random numbers lies beside the host tests.
sys.path.append(str(comfy_hosts.ROOT / "tests" / "host"))
import graphs  # noqa: E402

PACKAGE = "comfyui-frontend-package"
try:
    import comfy_page
except ModuleNotFoundError as error:
    if error.name != "selenium":
        raise
    comfy_page = None


def _why_not() -> str | None:
    if comfy_page is None:
        return "no selenium: pip install selenium"
    if comfy_page.executables() is None:
        return "no Chromium: install chromium and its chromedriver"
    if not comfy_hosts.at_hand():
        return comfy_hosts.NONE
    return None


def _installed() -> str | None:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def _front_end(folder: Path) -> tuple[str, Path | None] | None:
    """(version, its static folder or None for the installed one) for a host."""
    text = (folder / "requirements.txt").read_text("utf-8")
    pinned = re.search(rf"^{PACKAGE}==(\S+)", text, re.MULTILINE)
    wanted = pinned[1] if pinned else None
    if wanted != _installed():
        for place in filter(None, os.environ.get("REALTOON_TEST_FRONT_ENDS", "").split(os.pathsep)):
            if (Path(place) / f"comfyui_frontend_package-{wanted}.dist-info").is_dir():
                return wanted, Path(place) / "comfyui_frontend_package" / "static"
    installed = _installed()
    return (installed, None) if installed else None


def pytest_generate_tests(metafunc):
    """A test that takes `page` runs on every host at hand."""
    if "page" in metafunc.fixturenames:
        hosts = [None] if _why_not() else comfy_hosts.at_hand()
        ids = [f"comfyui-{host.version}" if host else "no-browser" for host in hosts]
        metafunc.parametrize("comfy", hosts, ids=ids, indirect=True, scope="session")


@pytest.fixture(scope="session")
def comfy(request):
    """A running ComfyUI (comfy_hosts.Comfy) with a small example.png among its inputs.

    It has small models of random weights under the names that the workflows have: where one is
    missing, the front end asks for it as it should.
    """
    reason = _why_not()
    if reason:
        pytest.skip(reason)
    front_end = _front_end(request.param.folder)
    if front_end is None:
        pytest.skip(f"no front end: pip install {PACKAGE}")
    version, folder = front_end
    arguments = [] if folder is None else ["--front-end-root", str(folder)]
    with comfy_hosts.started(request.param, extra_arguments=arguments) as running:
        running.front_end = version
        noise = np.random.default_rng(7).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((176, 132), Image.Resampling.BICUBIC)
        data = io.BytesIO()
        picture.save(data, "PNG")
        assert running.upload(data.getvalue(), "example.png") == "example.png"
        graphs.put_gpen(running, "GPEN-BFR-512.pth")
        graphs.put_qwen(running)
        settle(running, comfy_page.SETTINGS)
        yield running


@pytest.fixture(scope="session")
def page(comfy):
    """The front end in a browser (comfy_page.Page)."""
    with comfy_page.opened(comfy.url) as opened:
        yield opened


def settle(comfy, settings):
    """Store front end settings, as its settings dialog does."""
    status, body = comfy.do(lambda client: client._call("POST", "/settings", json=settings))
    assert status == 200, body
