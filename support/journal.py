"""The journal of an evaluation: what has been asked is not asked again after a kill, or when more is asked.

A text file. Its first line holds the settings that decide the answers and the verdicts; each further line is a chunk
of dialogues, written by one append when all of it is finished. A line that a kill left without its end does not count.
"""

import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def fingerprint(model, vocabulary: dict[str, int], end_tokens: set[int]) -> str:
    """Tells whether a model of the same name is still the same: its weights, configuration, vocabulary, end tokens."""
    digest = hashlib.sha256(
        repr((model.config.to_json_string(), sorted(vocabulary.items()), sorted(end_tokens))).encode()
    )
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def grader_version() -> str:
    """A hash of the sources that decide verdicts: after a change of the grader, old verdicts are not good."""
    sources = [ROOT / "reward.py", *sorted((ROOT / "support" / "grader").glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


class Journal:
    """The records of finished dialogues, without the keys `left_out`, by question and gold answer, in the order they
    were asked; in a file if a path is given. ValueError when the file has other settings, or is damaged."""

    def __init__(self, path: Path | None = None, settings: dict | None = None, left_out: tuple[str, ...] = ()):
        self.path, self.settings, self.left_out, self.count = path, settings, left_out, 0
        self.finished: dict[tuple[str, str], list[dict]] = defaultdict(list)
        content = path.read_bytes() if path and path.exists() else b""
        self.sound_bytes = content.rfind(b"\n") + 1  # after it there may be a line that was cut off
        if not self.sound_bytes:
            return
        try:
            there, *chunks = map(json.loads, content[: self.sound_bytes].splitlines())
            keys = [key for key in {**there, **settings} if there.get(key) != settings.get(key)]
            changed = ", ".join(f"{key} ({apart(there.get(key), settings.get(key))})" for key in keys)
            for chunk in chunks:
                self.keep(chunk)
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}): delete it, and its questions are asked again") from None
        if changed:
            why = f"{path} holds an evaluation with other settings, {changed}"
            raise ValueError(f"{why}: choose another --out, or delete it")

    def keep(self, chunk: list[dict]) -> None:
        for record in chunk:
            self.finished[record["question"], record["gold"]].append(record)
        self.count += len(chunk)

    def append(self, chunk: list[dict]) -> None:
        """Keep these records, on the disk before this returns."""
        chunk = [{key: value for key, value in record.items() if key not in self.left_out} for record in chunk]
        if self.path:
            lines = [chunk] if self.sound_bytes else [self.settings, chunk]
            with open(self.path, "r+b" if self.path.exists() else "wb") as file:
                file.truncate(self.sound_bytes)
                file.seek(self.sound_bytes)
                file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
                self.sound_bytes = file.tell()
        self.keep(chunk)


def apart(there, here) -> str:
    """Two settings that differ, of long ones the places where they do."""
    texts = [str(value).replace("\n", "\\n") for value in (there, here)]  # one line
    start = max(0, len(os.path.commonprefix(texts)) - 20)
    return "{} there, {} here".format(*(("..." * (start > 0) + text[start:])[:60] for text in texts))
