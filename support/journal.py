"""The journal of an evaluation: what has been asked is not asked again after a kill, or when more is asked.

A text file. Its first line holds the settings that decide the answers and the verdicts; each further line holds the
record of a dialogue. A line that a kill cut off does not count.
"""

import hashlib
import inspect
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from support.files import append_lines
from support.models import fingerprint

ROOT = Path(__file__).resolve().parents[1]


def journal_settings(model, chat, options, rules) -> dict:
    """All that decides the answers and the verdicts. Chat template and feedback count by what they write."""
    return {
        "max_new_tokens": options.max_new_tokens,
        "max_attempt_tokens": options.max_attempt_tokens,
        "model content": fingerprint(model, chat),
        "dtype": str(model.dtype),
        "prompt": chat.decode(chat.prompt("How much is 1 + 1?", 2)),
        "feedback": chat.try_feedback(),
        "sources": sources_version([*rules, chat.feedback]),
    }


def sources_version(functions: Iterable[Callable | str]) -> str:
    """A hash of the attempt loop, the grader and the files with these functions."""
    modules = [inspect.getmodule(getattr(f, "func", f)) for f in functions]  # None for a text
    own = {Path(module.__file__).resolve() for module in modules if hasattr(module, "__file__")}
    sources = sorted({ROOT / "rollout.py", ROOT / "reward.py", *ROOT.glob("support/grader/*.py")} | own)
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


class Journal:
    """The records of finished dialogues, without the keys `left_out`, by (question, gold answer), in the order they
    were asked; in a file if a path is given. ValueError when the file has other settings, or is damaged."""

    def __init__(self, path: Path | None = None, settings: dict | None = None, left_out: tuple[str, ...] = ()):
        self.path, self.settings, self.left_out = path, settings, left_out
        self.finished: dict[tuple[str, str], list[dict]] = defaultdict(list)
        self.count = 0  # of the records
        *lines, cut = path.read_bytes().split(b"\n") if path and path.exists() else [b""]
        if cut:
            os.truncate(path, path.stat().st_size - len(cut))
        if lines:
            try:
                saved, *records = map(json.loads, lines)
                self.keep(records)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path} is damaged, delete it to ask its questions again: {error!r}") from None
            if other := [key for key in saved | settings if saved.get(key) != settings.get(key)]:
                raise ValueError(f"{path} has other settings ({', '.join(other)}): choose another --out, or delete it")

    def missing(self, problems: list[tuple], counts: Sequence[int]) -> list[tuple]:
        """(problem, attempts allowed) of each dialogue that is not there. `counts` must begin as in earlier calls."""
        return [(problem, n) for problem in dict.fromkeys(problems) for n in counts[len(self.finished[problem]) :]]

    def records(self, problems: list[tuple], count: int) -> list[list[dict]]:
        """The first `count` records of each problem."""
        return [self.finished[problem][:count] for problem in problems]

    def keep(self, records: list[dict]) -> None:
        for record in records:
            self.finished[record["question"], record["gold"]].append(record)
        self.count += len(records)

    def append(self, records: list[dict]) -> None:
        """Keep these records, on the disk before this returns."""
        records = [{key: value for key, value in record.items() if key not in self.left_out} for record in records]
        if self.path:
            begun = self.path.exists() and self.path.stat().st_size
            append_lines(records if begun else [self.settings, *records], self.path)
        self.keep(records)
