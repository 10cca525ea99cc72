"""Unpack archives from elsewhere without trusting a single path in them."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from .errors import UserError

MAX_UNPACKED_BYTES = 2_000_000_000


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside target that takes target's name if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _safe_target(folder: Path, name: str, strip: Callable[[str], str | None]) -> Path | None:
    """Where a member goes; None if it is not wanted.

    Raises: UserError for a path that would leave the folder.
    """
    wanted = strip(name)
    if not wanted:
        return None
    path = PurePosixPath(wanted)
    bad = path.is_absolute() or ".." in path.parts or "\\" in wanted or ":" in wanted
    if bad:
        raise UserError(
            f"the archive has a member that points outside ({name!r})",
            "delete the download and fetch it again from the official place",
        )
    return folder.joinpath(*path.parts)


def unpack_zip(archive: Path, folder: Path, strip: Callable[[str], str | None]) -> int:
    """Plain files of a zip or wheel into folder. strip: member name -> relative name or None.

    Returns: how many files. Raises: UserError.
    """
    count = 0
    with zipfile.ZipFile(archive) as opened:
        _check_size(archive, sum(info.file_size for info in opened.infolist()))
        for info in opened.infolist():
            target = _safe_target(folder, info.filename, strip)
            is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
            if target is None or info.is_dir() or is_link:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(info) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
            count += 1
    return count


def unpack_tar(archive: Path, folder: Path, strip: Callable[[str], str | None]) -> int:
    """Plain files of a tar.gz into folder; links and devices are left out.

    Returns: how many files. Raises: UserError.
    """
    count = 0
    total = 0
    with tarfile.open(archive, "r:*") as opened:
        for member in opened:
            target = _safe_target(folder, member.name, strip)
            if target is None or not member.isreg():
                continue
            total += member.size
            _check_size(archive, total)
            source = opened.extractfile(member)
            if source is None:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
            count += 1
    return count


def _check_size(archive: Path, size_bytes: int) -> None:
    if size_bytes > MAX_UNPACKED_BYTES:
        raise UserError(
            f"{archive.name} unpacks to more than {MAX_UNPACKED_BYTES} bytes",
            "delete the download and fetch it again from the official place",
        )


def without_first_folder(name: str) -> str | None:
    """'ComfyUI-0.33.0/main.py' -> 'main.py'."""
    _, _, rest = name.partition("/")
    return rest or None


def inside(prefix: str) -> Callable[[str], str | None]:
    """Members under prefix, named from there."""
    return lambda name: name[len(prefix) :] if name.startswith(prefix) else None
