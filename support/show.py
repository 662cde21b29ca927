"""Dialogues for people to read: on a terminal, in colour, and as an HTML page that loads nothing else.

A dialogue here is what dialogue_record of evaluate.py returns."""

import os
import re
import sys
from html import escape
from pathlib import Path
from string import Template

from support.statistics import repeats

KINDS = {  # of dialogues: what --show_what calls them, and what that means
    "first": "solved by the first attempt",
    "fixed": "solved by a later attempt",
    "never": "never solved",
    "repeated": "a wrong answer repeated",
    "truncated": "an attempt cut off by a token budget",
}
COLOURS = {"prompt": "2", "attempt": "36", "feedback": "33", "right": "1;32", "wrong": "1;31"}  # ANSI codes
PER_KIND = 100  # dialogues of each kind and model on the page; a whole benchmark would be too much for a browser
PAGE = Path(__file__).with_name("dialogues.html")  # the page without its dialogues


def kinds(dialogue: dict) -> list[str]:
    """The kinds that a dialogue belongs to."""
    attempts = dialogue["attempts"]
    belongs = {
        "first": attempts[0]["correct"],
        "fixed": dialogue["correct"] and not attempts[0]["correct"],
        "never": not dialogue["correct"],
        "repeated": any(repeats([attempt["answer"] for attempt in attempts])),
        "truncated": dialogue["truncated"] or any(attempt["truncated"] for attempt in attempts),
    }
    return [kind for kind in KINDS if belongs[kind]]


def parts(dialogue: dict) -> list[tuple[str, str]]:
    """A dialogue as (kind of part, text): the prompt, then for each attempt its text, a verdict ("right" or "wrong"),
    and the feedback after it. Without the verdicts, this is the whole text of the dialogue."""
    text, attempts = dialogue["text"], dialogue["attempts"]
    starts = [attempt["at"] for attempt in attempts] + [len(text)]
    ends = [start + len(attempt["text"]) for start, attempt in zip(starts, attempts)]
    ends[-1] = len(text)  # the last attempt and its end token
    pieces = [("prompt", text[: starts[0]])]
    for i, attempt in enumerate(attempts):
        verdict, word = ("right", "correct") if attempt["correct"] else ("wrong", "wrong")
        answer = "no closed box" if attempt["answer"] is None else f"answer {attempt['answer']}"
        cut = ", cut off by the token budget" if attempt["truncated"] else ""
        pieces.append(("attempt", text[starts[i] : ends[i]]))
        pieces.append((verdict, f"attempt {i + 1} is {word}: {answer}{cut}"))
        pieces.append(("feedback", text[ends[i] : starts[i + 1]]))
    return [(kind, piece) for kind, piece in pieces if piece]


def readable(text: str) -> str:
    """Without the characters that steer a terminal or turn the direction of text, which a model may write as well."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\ufffd", text).strip("\n")


def html(text: str) -> str:
    return escape(readable(text))


def wants_colour() -> bool:
    """Colour is for terminals, unless NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def shown(dialogues: list[dict], count: int, what: str, colour: bool) -> str:
    """The first `count` dialogues of the kind `what` ("all": of any kind) as text, in ANSI colours if wanted."""
    chosen = [dialogue for dialogue in dialogues if what in ("all", *kinds(dialogue))][:count]
    lines = []
    for i, dialogue in enumerate(chosen, 1):
        meanings = ", ".join(KINDS[kind] for kind in kinds(dialogue))
        lines.append(f"=== {i} of {len(chosen)}: {meanings}; the gold answer is {readable(dialogue['gold'])}")
        for kind, piece in parts(dialogue):
            line = f"--- {readable(piece)}" if kind in ("right", "wrong") else readable(piece)
            lines.append(f"\033[{COLOURS[kind]}m{line}\033[0m" if colour else line)
        lines.append("")
    return "\n".join(lines[:-1]) or f"no dialogue is of the kind: {KINDS.get(what, what)}"


def first_of_each_kind(dialogues: list[dict]) -> list[dict]:
    """The first PER_KIND dialogues of each kind. One of several kinds counts in each."""
    room, chosen = dict.fromkeys(KINDS, PER_KIND), []
    for dialogue in dialogues:
        if any(room[kind] > 0 for kind in kinds(dialogue)):
            chosen.append(dialogue)
            for kind in kinds(dialogue):
                room[kind] -= 1
    return chosen


def page(models: dict[str, list[dict]]) -> str:
    """Dialogues by model name -> an HTML page with the first of each kind and model, and a button for each kind."""
    body, there = [], []
    for name, dialogues in models.items():
        body.append(f"<h2>{html(name)}</h2>")
        for dialogue in first_of_each_kind(dialogues):
            own = ["all", *kinds(dialogue)]
            there += own
            verdict, word = ("right", "solved") if dialogue["correct"] else ("wrong", "not solved")
            used = f"{len(dialogue['attempts'])} of {dialogue['allowed']} attempts"
            summary = f'<b class="{verdict}">{word}</b>, {used}: {html(dialogue["question"][:200])}'
            body.append(f'<details data-kinds="{" ".join(own)}"><summary>{summary}</summary>')
            body += [f'<pre class="{kind}">{html(piece)}</pre>' for kind, piece in parts(dialogue)]
            body.append(f"<p>The gold answer is <code>{html(dialogue['gold'])}</code>.</p></details>")
    buttons = [
        f'<button data-kind="{kind}">{KINDS.get(kind, kind)} ({there.count(kind)})</button>' for kind in ("all", *KINDS)
    ]
    count = f"{there.count('all')} of {sum(map(len, models.values()))}"
    texts = {"count": count, "most": PER_KIND, "buttons": "\n".join(buttons), "dialogues": "\n".join(body)}
    return Template(PAGE.read_text(encoding="utf-8")).substitute(texts)
