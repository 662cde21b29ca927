"""Dialogues (evaluate.py:dialogue_record) for people to read: as text, and as a page that loads nothing else."""

import json
import re
from pathlib import Path
from string import Template

from support.statistics import repeats

KINDS = {  # of dialogues: what --show_what calls them, and what that means
    "first": "solved by the first attempt",
    "fixed": "solved by a later attempt",
    "never": "never solved",
    "repeated": "a wrong answer repeated",
    "truncated": "cut off by a token budget",
}
MOST = 500  # questions on a page: more would be too much for a browser
PAGE = Path(__file__).with_name("dialogues.html")  # the page without its dialogues


def kinds(dialogue: dict) -> list[str]:
    """The kinds that a dialogue belongs to."""
    attempts = dialogue["attempts"]
    found = ["first" if attempts[0]["correct"] else "fixed" if dialogue["correct"] else "never"]
    if any(repeats([attempt["answer"] for attempt in attempts])):
        found.append("repeated")
    if dialogue["truncated"] or any(attempt["truncated"] for attempt in attempts):
        found.append("truncated")
    return found


def parts(dialogue: dict) -> list[tuple[str, str]]:
    """A dialogue as (kind of part, text): the prompt, then for each attempt its text, a verdict ("correct" or "wrong"),
    and the feedback after it. Without the verdicts, this is the whole text of the dialogue."""
    text, attempts, pieces, end = dialogue["text"], dialogue["attempts"], [], 0
    for i, attempt in enumerate(attempts, 1):
        pieces.append(("feedback" if end else "prompt", text[end : attempt["text_start"]]))
        end = attempt["text_end"]
        pieces.append(("attempt", text[attempt["text_start"] : end]))
        verdict = "correct" if attempt["correct"] else "wrong"
        cut = ", cut off by the token budget" if attempt["truncated"] else ""
        pieces.append((verdict, f"attempt {i} is {verdict}: {answer_of(attempt)}{cut}"))
    return [(kind, piece) for kind, piece in pieces if piece]


def answer_of(attempt: dict) -> str:
    return "no closed box" if attempt["answer"] is None else f"answer {attempt['answer']}"


def readable(text: str) -> str:
    """The text without control characters: a model may write them, and they steer a terminal or reverse the text."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\ufffd", text).strip("\n")


def as_text(dialogue: dict) -> str:
    """The whole dialogue with its gold answer and verdicts."""
    meanings = ", ".join(KINDS[kind] for kind in kinds(dialogue))
    lines = [f"=== {meanings}; gold answer {dialogue['gold']}, reward {dialogue['reward']:+.2f}"]
    lines += [f"--- {piece}" if kind in ("correct", "wrong") else piece for kind, piece in parts(dialogue)]
    return "\n".join(map(readable, lines))


def shown(dialogues: list[dict], count: int, what: str) -> str:
    """The first `count` dialogues of the kind `what` ("all": of any kind) as text."""
    chosen = [dialogue for dialogue in dialogues if what in ("all", *kinds(dialogue))]
    return "\n\n".join(map(as_text, chosen[:count])) or f"no dialogue is of the kind: {KINDS[what]}"


def page(models: dict[str, list[dict]]) -> str:
    """Dialogues by model name, all about the same questions -> an HTML page that draws them: a line for each question
    that unfolds to the dialogues of all models side by side, and a button for each kind of dialogue."""
    questions = []
    for dialogues in zip(*models.values(), strict=True):
        columns = []
        for name, dialogue in zip(models, dialogues):
            answer, used = answer_of(dialogue["attempts"][-1]), f"{len(dialogue['attempts'])} of {dialogue['allowed']}"
            column = {"name": name, "answer": answer, "used": used, "correct": dialogue["correct"]}
            pieces = [(kind, readable(piece)) for kind, piece in parts(dialogue)]
            columns.append(column | {"kinds": kinds(dialogue), "parts": pieces})
        questions.append({"question": dialogues[0]["question"], "gold": dialogues[0]["gold"], "models": columns})
    data = json.dumps({"kinds": KINDS, "count": len(questions), "questions": questions[:MOST]})
    return Template(PAGE.read_text(encoding="utf-8")).substitute(data=data.replace("<", r"\u003c"))  # no tag in it
