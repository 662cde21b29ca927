"""The journal of an evaluation: what has been asked is not asked again after a kill.

A text file: the first line holds the settings that decide the answers, every further line a chunk of dialogues, a row
each. A chunk is written by one append when all of it is finished; a line that a kill left without its end counts as not
written. So what is still to be asked falls into the same chunks as without the kill. What is asked later, more
questions or more dialogues of a question, goes behind.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import torch
from tqdm import tqdm

from data import Problem
from data.chat import Chat


def fingerprint(model, chat: Chat) -> str:
    """Tells whether a model of the same name is still the same: its weights, configuration, vocabulary, end tokens."""
    vocabulary = sorted(chat.tokenizer.get_vocab().items())
    digest = hashlib.sha256(repr((model.config.to_json_string(), vocabulary, sorted(chat.ends))).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def read_journal(path: Path, settings: dict) -> dict[Problem, list[dict]]:
    """The rows of every question in the order they were asked. ValueError when they were asked with other settings."""
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]  # behind the last line end: a cut-off line
    done = defaultdict(list)
    try:
        there, *chunks = map(json.loads, lines or [json.dumps(settings)])
        differing = [
            f"{key} ({there.get(key)} there, {settings.get(key)} here)"
            for key in {**there, **settings}
            if there.get(key) != settings.get(key)
        ]
        for row in chain.from_iterable(chunks) if not differing else ():
            done[Problem(row["question"], row["gold"])].append(row)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): delete it, and its questions are asked again") from None
    if differing:
        raise ValueError(
            f"{path} holds an evaluation with other settings, {', '.join(differing)}: choose another "
            "--out, or delete it"
        )
    return done


def running(rows: list[dict]) -> dict[str, str]:
    """For the progress bar: share of correct rows with the fewest and with the most attempts allowed."""
    shares = {}
    for allowed in sorted({row["allowed"] for row in rows}):
        correct = [row["correct"] for row in rows if row["allowed"] == allowed]
        shares[f"correct_at_{allowed}"] = f"{sum(correct) / len(correct):.1%}"
    return {key: shares[key] for key in [*shares][:: max(1, len(shares) - 1)]}


def finish(
    path: Path,
    settings: dict,
    problems: list[Problem],
    allowed: Sequence[int],
    size: int,
    ask: Callable[[list[tuple[Problem, int]], int], list[dict]],
    label: str,
) -> list[list[dict]]:
    """For every problem a row for each number in `allowed`: from the journal, or from ask(pairs of a problem and a
    number, count of the rows before theirs), `size` pairs at a time. A journal that was written with a shorter or
    longer `allowed` serves as well, as long as one begins like the other."""
    done, different = read_journal(path, settings), list(dict.fromkeys(problems))
    rest = [(problem, k) for problem in different for k in allowed[len(done[problem]) :]]
    before, total = sum(map(len, done.values())), len(different) * len(allowed)
    with open(path, "a+b") as file, tqdm(total=total, initial=total - len(rest), desc=label, unit="dialogue") as bar:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        if not file.seek(0, os.SEEK_END):
            file.write(json.dumps(settings).encode() + b"\n")

        def show_accuracy() -> None:
            bar.set_postfix(running([row for problem in different for row in done[problem][: len(allowed)]]))

        show_accuracy()
        for start in range(0, len(rest), size):
            chunk = rest[start : start + size]
            rows = ask(chunk, before + start)
            file.write(json.dumps(rows).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            for (problem, _), row in zip(chunk, rows, strict=True):
                done[problem].append(row)
            bar.update(len(chunk))
            show_accuracy()
    return [done[problem][: len(allowed)] for problem in problems]
