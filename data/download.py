"""Published files: downloaded once from a pinned commit into a cache folder, and checked whenever they are read.

The folder is MULTI_ATTEMPT_CACHE, else ~/.cache/multi-attempt. Without a network, put the files there by hand.
"""

import hashlib
import os
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen


def git_blob_id(content: bytes) -> str:
    """The checksum that `git hash-object` prints."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def fetch(file: str, address: str, blob_id: str, cache: str | Path | None, base_url: str | None) -> tuple[Path, bytes]:
    """The path and the content of a file in the cache, downloaded first when it is not there. ValueError when the
    content has another blob id, OSError when there is none or it cannot be written."""
    cache = Path(cache or os.environ.get("MULTI_ATTEMPT_CACHE") or "~/.cache/multi-attempt").expanduser()
    base_url = base_url or os.environ.get("MULTI_ATTEMPT_DATA_URL") or "https://raw.githubusercontent.com"
    path, url = cache / file, f"{base_url.rstrip('/')}/{address}"
    if cached := path.exists():
        content = path.read_bytes()
    else:
        try:
            with urlopen(url, timeout=30) as response:
                content = response.read()  # a few MB: they stay in memory until they are known to be right
        except (OSError, HTTPException, ValueError) as error:
            failed = f"{path} is missing and {url} could not be downloaded ({error})"
            raise FileNotFoundError(f"{failed}: get it by other means and put it there") from None
    if (found := git_blob_id(content)) != blob_id:
        advice = "delete it, and it is downloaded again" if cached else f"get that by other means and put it at {path}"
        place = path if cached else url
        raise ValueError(f"{place} is not the published file (git blob id {found}, expected {blob_id}): {advice}")
    if not cached:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=path.parent) as folder:
                part = Path(folder) / file
                part.write_bytes(content)
                os.replace(part, path)  # whoever looks, at whatever moment, sees the whole file or none
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror}): name another cache folder") from None
    return path, content
