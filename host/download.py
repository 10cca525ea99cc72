"""Download one file: resumed, retried, checked, and never half-written under its final name.

urllib and not a download library: this runs before the environment exists too, and the libraries
that were looked at either do not resume (pooch) or keep state files and threads of their own
(pypdl).
"""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

from .errors import UserError

CHUNK_BYTES = 1 << 18
Progress = Callable[[int, "int | None"], None]
AGENT = "realtoon/0.1 (+https://github.com/realtoon/comfyui-realtoon)"
# A broken connection; a refused one is an HTTPError and handled before.
BROKEN = (OSError, http.client.HTTPException)


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not context.get_ca_certs() and not ssl.get_default_verify_paths().cafile:
        # Pythons from python.org on macOS come without certificates; pip brings some.
        for name in ("certifi", "pip._vendor.certifi"):
            try:
                module = __import__(name, fromlist=["where"])
            except ImportError:
                continue
            context.load_verify_locations(module.where())
            break
    return context


def open_url(request: urllib.request.Request, timeout_s: float) -> http.client.HTTPResponse:
    """urlopen with certificates that work everywhere. Proxies come from the environment."""
    if request.type == "https":
        return urllib.request.urlopen(request, timeout=timeout_s, context=_context())
    return urllib.request.urlopen(request, timeout=timeout_s)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch(
    urls: str | Iterable[str],
    target: Path,
    *,
    sha256: str | None = None,
    size_bytes: int | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
    tries: int = 5,
    timeout_s: float = 20.0,
    pause_s: float = 1.0,
) -> str:
    """Bring one of urls to target and return its SHA-256.

    What has arrived stays in '<target>.part' and the next call goes on from there. A wrong hash or
    size deletes it, and so does more than max_bytes. target appears only when complete and right.
    Raises: UserError.
    """
    addresses = [urls] if isinstance(urls, str) else list(urls)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    reasons: list[str] = []
    for address in addresses:
        for attempt in range(tries):
            if attempt:
                time.sleep(pause_s * attempt)
            resuming = part.exists()
            try:
                _one_try(address, part, progress, timeout_s, size_bytes or max_bytes)
                got = _check(part, target.name, sha256, size_bytes)
            except _WrongFileError as error:
                reasons.append(f"{address}: {error}")
                if resuming:
                    # What lay there may have been another file's beginning: once more from zero.
                    continue
                break
            except _GiveUpError as error:
                reasons.append(f"{address}: {error}")
                break
            except BROKEN as error:
                reasons.append(f"{address}: {_reason(error)}")
                continue
            os.replace(part, target)
            return got
    raise UserError(
        f"{target.name} could not be downloaded ({reasons[-1] if reasons else 'no address'})",
        "check the network and run the same command again, it goes on where it stopped",
    )


class _GiveUpError(Exception):
    """Trying the same address again would give the same answer."""


class _WrongFileError(Exception):
    """What arrived is not the file that was asked for."""


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason) or type(reason).__name__


def _one_try(
    address: str, part: Path, progress: Progress | None, timeout_s: float, limit: int | None
) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = open_url(urllib.request.Request(address, headers=headers), timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            # Nothing after what we have: either complete, and the hash says so, or not ours.
            return
        if error.code in (408, 425, 429) or error.code >= 500:
            raise ConnectionError(f"HTTP {error.code}") from error
        raise _GiveUpError(f"HTTP {error.code} {error.reason}") from error
    with response:
        resumed = response.status == 206 and _starts_at(response, have)
        if have and response.status == 206 and not resumed:
            part.unlink()
            raise ConnectionError("the server resumed at another place")
        _copy(response, part, have if resumed else 0, progress, limit)


def _starts_at(response: http.client.HTTPResponse, have: int) -> bool:
    return (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-")


def _copy(
    response: http.client.HTTPResponse,
    part: Path,
    have: int,
    progress: Progress | None,
    limit: int | None,
) -> None:
    length = response.headers.get("Content-Length")
    total = have + int(length) if length else None
    done = have
    with part.open("ab" if have else "wb") as out:
        while block := response.read(CHUNK_BYTES):
            out.write(block)
            done += len(block)
            if limit is not None and done > limit:
                break
            if progress is not None:
                progress(done, total)
    if limit is not None and done > limit:
        part.unlink()
        raise _WrongFileError(f"more than the {limit} bytes that it should have")
    if total is not None and done < total:
        raise ConnectionError(f"the connection broke after {done} of {total} bytes")


def _check(part: Path, name: str, sha256: str | None, size_bytes: int | None) -> str:
    size = part.stat().st_size
    if size_bytes is not None and size != size_bytes:
        part.unlink()
        raise _WrongFileError(f"{name} has {size} bytes, expected {size_bytes}")
    got = sha256_of(part)
    if sha256 is not None and got != sha256:
        part.unlink()
        raise _WrongFileError(f"{name} has SHA-256 {got[:12]}…, expected {sha256[:12]}…")
    return got
