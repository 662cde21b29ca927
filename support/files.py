"""Files that are never half-written, and folders that one process at a time writes."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields the path to write to, which becomes `path` when it is whole. An old folder must be deleted before that."""
    part = Path(f"{path}.part")
    remove(part)  # left by a process that was killed
    try:
        yield part
        if part.is_file():
            with open(part) as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        remove(part)  # if it has not become `path`


def remove(path: Path) -> None:
    """Delete a file, or a folder and all that is in it, if there is one."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def save_text(text: str, path: str | Path) -> None:
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def save_json(result, path: str | Path) -> None:
    save_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", path)


def append_lines(rows: list[dict], path: str | Path) -> None:
    """Append a line of JSON for each row, on the disk before this returns."""
    with open(path, "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def make_folder(out: str | Path) -> Path:
    """The folder, made if need be. OSError in one sentence when nothing can be written into it."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise OSError(f"the output folder {out} cannot be written ({error.strerror}): choose another --out") from None
    return Path(out)


@contextmanager
def locked_folder(out: str) -> Iterator[None]:
    """Locks the folder of a run or an evaluation inside this context, then deletes it if it is empty. OSError when
    another process has locked it, or it cannot be written."""
    folder = make_folder(out)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise OSError(f"another process writes to {out}: wait for its end, or choose another --out") from None
    except OSError:  # a network file system may have no locks
        pass
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()  # if it is empty
        os.close(lock)


def read_json(path: str | Path, lines: bool = False):
    """What a file of JSON holds; with `lines`, a list of what each line holds."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return list(map(json.loads, text.splitlines())) if lines else json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
