"""When an environment is made, resumed and left alone. pip and venv are stood in for."""

import importlib.util
import json
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
from realtoon.host import environment, locks, paths, pip, requirements, torch_choice
from realtoon.host.errors import UserError
from realtoon.host.sources import Host

REQUIREMENTS = """# a comment
comfyui-frontend-package==1.2.3
comfyui-workflow-templates==0.7.25
comfyui_workflow_templates_core==1
torch
torchsde
torchvision
torchaudio  # another
numpy>=1.25.0

"""


@pytest.fixture
def host(tmp_path):
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    return Host(folder, "0.33.0", "test", owned=True)


@pytest.fixture
def calls(monkeypatch):
    """What pip would have been asked for; `fails` names requirements that cannot be had."""
    made = []
    made_fails = set()

    class Calls(list):
        fails = made_fails

    made = Calls()

    def make_venv(base, folder):
        made.append(("venv", str(base)))
        shutil.rmtree(folder, ignore_errors=True)
        python = pip.venv_python(folder)
        python.parent.mkdir(parents=True)
        python.write_text("")
        (folder / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
        (folder / "Lib" / "site-packages").mkdir(parents=True, exist_ok=True)

    def install(python, wanted, *, constraints=None, options=()):
        made.append(("pip", list(wanted), constraints.read_text() if constraints else ""))
        if made_fails & set(wanted):
            raise UserError("pip could not install", "try again")

    monkeypatch.setattr(pip, "make_venv", make_venv)
    monkeypatch.setattr(pip, "install", install)
    monkeypatch.setattr(torch_choice, "choose", lambda own, earlier: None)
    monkeypatch.setattr(torch_choice, "index_for_new", lambda: [])
    monkeypatch.setattr(torch_choice, "index_for", lambda version: [])
    monkeypatch.setattr(torch_choice, "import_problem", lambda python: None)
    monkeypatch.setattr(
        torch_choice,
        "describe",
        lambda path: torch_choice.Python(path, (3, 11), "2.14.0", (), ("venv", "ensurepip")),
    )
    return made


def pips(calls):
    return [call[1] for call in calls if call[0] == "pip"]


def test_the_hosts_list_without_torch_and_templates(host):
    assert requirements.of_host(host.folder) == [
        "comfyui-frontend-package==1.2.3",
        "torchsde",
        "numpy>=1.25.0",
        *requirements.UNLISTED,
        *requirements.CLIENT,
    ]


def test_first_run_makes_it_and_the_second_does_nothing(host, calls, tmp_path):
    first = environment.ensure(host, ["demo"], tmp_path / "cache")
    trio = ["torch", "torchvision", "torchaudio"]
    assert pips(calls) == [trio, requirements.of_host(host.folder), list(requirements.DEMO)]
    # The host's own list must not bring another torch.
    assert calls[2][2] == "torch==2.14.0\n"
    del calls[:]
    assert environment.ensure(host, ["demo"], tmp_path / "cache") == first
    assert calls == []


def test_an_interrupted_one_goes_on_where_it_stopped(host, calls, tmp_path):
    calls.fails.add("torchsde")
    with pytest.raises(UserError):
        environment.ensure(host, [], tmp_path / "cache")
    calls.fails.clear()
    del calls[:]
    environment.ensure(host, [], tmp_path / "cache")
    assert pips(calls) == [requirements.of_host(host.folder)]
    assert not [call for call in calls if call[0] == "venv"]


def test_other_requirements_are_another_environment(host, calls, tmp_path):
    first = environment.ensure(host, [], tmp_path / "cache")
    (host.folder / "requirements.txt").write_text(REQUIREMENTS + "blake3\n")
    assert environment.ensure(host, [], tmp_path / "cache").folder != first.folder


def test_a_users_install_has_an_environment_of_its_own(host, calls, tmp_path):
    first = environment.ensure(host, [], tmp_path / "cache")
    theirs = Host(host.folder, "0.33.0", "test", owned=False)
    assert environment.ensure(theirs, [], tmp_path / "cache").folder != first.folder


def donor(monkeypatch, tmp_path, torch="2.9.0+cpu"):
    site = tmp_path / "donor" / "site-packages"
    site.mkdir(parents=True)
    found = torch_choice.Python(
        tmp_path / "donor" / "python", (3, 11), torch, (str(site),), ("venv", "ensurepip")
    )
    monkeypatch.setattr(torch_choice, "choose", lambda own, earlier: found)
    return site


def test_a_torch_that_is_there_is_reused(host, calls, tmp_path, monkeypatch):
    site = donor(monkeypatch, tmp_path)
    made = environment.ensure(host, [], tmp_path / "cache")
    assert pips(calls)[0] == ["torchvision", "torchaudio"]
    assert calls[1][2] == "torch==2.9.0+cpu\n"
    [pth] = made.folder.rglob("realtoon_donor.pth")
    assert str(site) in pth.read_text()
    # Its donor gone, the environment is made again.
    shutil.rmtree(site)
    del calls[:]
    environment.ensure(host, [], tmp_path / "cache")
    assert calls[0][0] == "venv"


def test_a_torch_that_does_not_work_is_replaced_by_our_own(host, calls, tmp_path, monkeypatch):
    donor(monkeypatch, tmp_path)
    problems = ["undefined symbol", None]
    monkeypatch.setattr(torch_choice, "import_problem", lambda python: problems.pop(0))
    made = environment.ensure(host, [], tmp_path / "cache")
    assert ["torch", "torchvision", "torchaudio"] in pips(calls)
    assert not list(made.folder.rglob("realtoon_donor.pth"))
    assert json.loads((made.folder / "realtoon.json").read_text())["donor"] == []


def test_a_peer_without_a_wheel_is_left_out_once(host, calls, tmp_path, monkeypatch, capsys):
    lines = ["pytest>=8", "tensorflow-cpu>=2.16", "openvino"]
    monkeypatch.setattr(requirements, "of_extra", lambda extra, python: lines)
    calls.fails.add("tensorflow-cpu>=2.16")
    environment.ensure(host, ["test"], tmp_path / "cache")
    assert pips(calls)[2:] == [["pytest>=8"], ["tensorflow-cpu>=2.16"], ["openvino"]]
    assert "tensorflow-cpu cannot be had" in capsys.readouterr().err
    del calls[:]
    environment.ensure(host, ["test"], tmp_path / "cache")
    assert calls == []


def test_the_packs_own_extras_are_read(tmp_path):
    for extra in ("test", "onnx"):
        names = [requirements.name_of(line) for line in requirements.of_extra(extra, Path())]
        assert names
        assert all(names)
    with pytest.raises(UserError, match="no extra nothing"):
        requirements.of_extra("nothing", Path())


def test_a_full_disk_is_said_before_anything_is_made(host, calls, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"0\.0 GB free, about 8 GB are needed"):
        environment.ensure(host, [], tmp_path / "cache")
    assert calls == []


def test_a_client_needs_no_torch_and_reuses_what_is_there(host, calls, tmp_path):
    small = environment.ensure_client(tmp_path / "a")
    assert pips(calls) == [requirements.CLIENT] or pips(calls) == [list(requirements.CLIENT)]
    del calls[:]
    assert environment.ensure_client(tmp_path / "a") == small
    assert calls == []
    full = environment.ensure(host, [], tmp_path / "b")
    assert environment.ensure_client(tmp_path / "b") == full


@pytest.mark.parametrize(
    ("torch", "version", "good"),
    [
        ("2.4.0", (3, 10), True),
        ("2.14.1+cu128", (3, 12), True),
        ("2.3.1", (3, 11), False),
        ("", (3, 11), False),
        ("2.9.0", (3, 9), False),
        ("nightly", (3, 11), False),
    ],
)
def test_which_torch_is_good_enough(torch, version, good):
    assert torch_choice.Python(Path("x"), version, torch, (), ()).has_good_torch is good


def test_only_one_run_at_a_time(tmp_path, capsys):
    order = []

    def second():
        with locks.only_one(tmp_path / "lock", "the test", poll_s=0.01):
            order.append("second")

    with locks.only_one(tmp_path / "lock", "the test"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
    assert "waiting for it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("ERROR: Could not find a version\nERROR: No matching distribution", "No matching"),
        ("x\nFailed to establish a new connection\nERROR: no", "the package index does not"),
        ("", "pip said nothing"),
    ],
)
def test_the_line_of_pip_that_says_why(output, said):
    assert pip.last_error(output).startswith(said)


def test_the_cache_folder_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("REALTOON_CACHE", str(tmp_path / "mine"))
    assert paths.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("REALTOON_CACHE")
    assert paths.cache_folder().name == "realtoon"


@pytest.mark.parametrize(
    ("text", "knows"),
    [
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", True),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", True),
        ("cuda = None\nxpu = '2025'\n", True),
        (
            "__version__ = '2.9.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n",
            False,
        ),
    ],
)
def test_a_torch_that_knows_no_card_is_told_by_its_file(tmp_path, monkeypatch, text, knows):
    (tmp_path / "version.py").write_text(text)
    spec = importlib.util.spec_from_file_location("torch", tmp_path / "__init__.py")
    monkeypatch.setattr(torch_choice, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch_choice, "has_graphics_card", lambda: True)
    assert torch_choice._build_knows_cards() is knows
    if not knows and sys.platform != "darwin":
        # Decided without starting a Python, which this path would not survive.
        assert torch_choice.needs_cpu_flag(tmp_path / "no python")
