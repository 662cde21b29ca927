"""Published files: downloaded once from a pinned commit into a cache folder, and checked whenever they are read.

The folder is MULTI_ATTEMPT_CACHE, else ~/.cache/multi-attempt. Without a network, put the files there by hand, or name
a mirror of GitHub's files in MULTI_ATTEMPT_DATA_URL.
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


def fetch(file: str, address: str, blob_id: str) -> tuple[Path, bytes]:
    """The path and the content of a file in the cache, downloaded first when it is not there. ValueError when the
    content has another blob id, OSError when there is none or it cannot be written."""
    path = Path(os.environ.get("MULTI_ATTEMPT_CACHE") or "~/.cache/multi-attempt").expanduser() / file
    mirror = os.environ.get("MULTI_ATTEMPT_DATA_URL") or "https://raw.githubusercontent.com"
    place = path if path.exists() else f"{mirror.rstrip('/')}/{address}"
    try:
        # a few MB: they stay in memory until they are known to be right
        content = path.read_bytes() if place == path else urlopen(place, timeout=30).read()
    except (OSError, HTTPException, ValueError) as error:
        raise OSError(f"{place} cannot be read ({error}): get it by other means and put it at {path}") from None
    if (found := git_blob_id(content)) != blob_id:
        advice = f"put that at {path}, or delete what is there to download it again"
        raise ValueError(f"{place} is not the published file (git blob id {found}, expected {blob_id}): {advice}")
    if place != path:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=path.parent) as folder:  # of this process alone: another may download it too
                part = Path(folder) / file
                part.write_bytes(content)
                os.replace(part, path)  # whoever looks, at whatever moment, sees the whole file or none
        except OSError as error:
            raise OSError(
                f"{path} cannot be written ({error.strerror}): name another folder in MULTI_ATTEMPT_CACHE"
            ) from None
    return path, content
