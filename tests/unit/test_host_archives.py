"""Archives that want out of their folder, and folders that appear whole or not at all."""

import io
import tarfile
import zipfile

import pytest
from realtoon.host import archives
from realtoon.host.errors import UserError

EVIL = ["../evil", "a/../../evil", "/etc/evil", "a\\..\\evil", "C:/evil", "a/..\\..\\evil"]


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as out:
        for name, data in members.items():
            out.writestr(name, data)
    return path


def make_tar(path, members):
    with tarfile.open(path, "w:gz") as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


MAKERS = [(make_zip, archives.unpack_zip), (make_tar, archives.unpack_tar)]


@pytest.mark.parametrize(("make", "unpack"), MAKERS)
def test_files_land_under_the_stripped_name(tmp_path, make, unpack):
    members = {"Comfy-1/main.py": b"main", "Comfy-1/comfy/cli_args.py": b"args"}
    archive = make(tmp_path / "archive", members)
    out = tmp_path / "out"
    assert unpack(archive, out, archives.without_first_folder) == 2
    assert (out / "main.py").read_bytes() == b"main"
    assert (out / "comfy" / "cli_args.py").read_bytes() == b"args"


@pytest.mark.parametrize(("make", "unpack"), MAKERS)
@pytest.mark.parametrize("name", EVIL)
def test_a_member_that_points_outside_is_refused(tmp_path, make, unpack, name):
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    archive = make(tmp_path / "archive", {f"top/{name}" if name[0] != "/" else f"top/{name}": b"x"})
    with pytest.raises(UserError, match="points outside"):
        unpack(archive, folder, archives.without_first_folder)
    assert list(folder.iterdir()) == []
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["archive", "deep", "folder"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_of_a_tar_are_left_out(tmp_path, kind):
    archive = tmp_path / "archive"
    with tarfile.open(archive, "w") as out:
        info = tarfile.TarInfo("top/link")
        info.type, info.linkname = kind, "/etc/passwd"
        out.addfile(info)
    assert archives.unpack_tar(archive, tmp_path / "out", archives.without_first_folder) == 0
    assert not (tmp_path / "out").exists()


def test_a_symlink_in_a_zip_is_left_out(tmp_path):
    info = zipfile.ZipInfo("top/link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "archive", "w") as out:
        out.writestr(info, "/etc/passwd")
    count = archives.unpack_zip(tmp_path / "archive", tmp_path / "out", lambda name: name)
    assert count == 0


@pytest.mark.parametrize(("make", "unpack"), MAKERS)
def test_an_archive_that_unpacks_without_end_is_refused(tmp_path, make, unpack, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1000)
    archive = make(tmp_path / "archive", {"top/a": b"x" * 600, "top/b": b"x" * 600})
    with pytest.raises(UserError, match="more than 1000 bytes"):
        unpack(archive, tmp_path / "out", archives.without_first_folder)


def test_only_the_wanted_folder_of_a_wheel_is_taken(tmp_path):
    archive = make_zip(tmp_path / "archive", {"lib/_comfyui/main.py": b"m", "lib/other.py": b"o"})
    archives.unpack_zip(archive, tmp_path / "out", archives.inside("lib/_comfyui/"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["main.py"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "host"
    with pytest.raises(OSError, match="disk full"), archives.fresh_folder(target) as folder:
        (folder / "half").write_text("x")
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []
    for content in ("first", "second"):
        with archives.fresh_folder(target) as folder:
            (folder / "file").write_text(content)
    assert (target / "file").read_text() == "second"
    assert list(tmp_path.iterdir()) == [target]
