"""Dialogues for people to read: with colour on a terminal, and as one HTML page that needs nothing from outside."""

import os
import re
import sys
from html import escape

from support.statistics import repeats

KINDS = {  # name of a kind: what it means
    "first": "solved by the first attempt",
    "fixed": "solved by a later attempt",
    "never": "never solved",
    "repeated": "a wrong answer repeated",
    "truncated": "an attempt cut off by a token budget",
}
COLOURS = {"prompt": "2", "attempt": "36", "feedback": "33", "right": "1;32", "wrong": "1;31"}  # ANSI codes
PER_KIND = 100  # dialogues of a kind and a model on the page: one of all benchmarks would be too large for a browser


def kinds(dialogue: dict) -> list[str]:
    """The kinds that a dialogue, a record of evaluate.py, belongs to."""
    attempts = dialogue["attempts"]
    holds = {
        "first": attempts[0]["correct"],
        "fixed": dialogue["correct"] and len(attempts) > 1,
        "never": not dialogue["correct"],
        "repeated": any(repeats([attempt["answer"] for attempt in attempts])),
        "truncated": dialogue["truncated"] or any(attempt["truncated"] for attempt in attempts),
    }
    return [kind for kind in KINDS if holds[kind]]


def parts(dialogue: dict) -> list[tuple[str, str]]:
    """The whole dialogue cut into (prompt, attempt, right or wrong, feedback, attempt, ...) and the text of each."""
    text, attempts = dialogue["text"], dialogue["attempts"]
    starts = [attempt["at"] for attempt in attempts] + [len(text)]
    pieces = [("prompt", text[: starts[0]])]
    for i, (attempt, start, following) in enumerate(zip(attempts, starts, starts[1:]), 1):
        end = start + len(attempt["text"]) if i < len(attempts) else following  # with the last goes its end token
        verdict = "correct" if attempt["correct"] else "wrong"
        answer = "no closed box" if attempt["answer"] is None else f"answer {attempt['answer']}"
        cut = ", cut off by the token budget" if attempt["truncated"] else ""
        pieces += [
            ("attempt", text[start:end]),
            ("right" if attempt["correct"] else "wrong", f"attempt {i} is {verdict}: {answer}{cut}"),
            ("feedback", text[end:following]),
        ]
    return [(kind, piece) for kind, piece in pieces if piece]


def readable(text: str) -> str:
    """Without the characters that steer a terminal or turn the direction of text: a model may write these as well."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\ufffd", text).strip("\n")


def html(text: str) -> str:
    return escape(readable(text))


def shown(dialogues: list[dict], count: int, what: str, colour: bool) -> str:
    """The first `count` dialogues of a kind ("all": of any) as text, in ANSI colours if wanted."""
    chosen = [dialogue for dialogue in dialogues if what == "all" or what in kinds(dialogue)][:count]
    texts = []
    for i, dialogue in enumerate(chosen, 1):
        lines = [
            f"=== {i} of {len(chosen)}: {', '.join(map(KINDS.get, kinds(dialogue)))}; "
            f"the gold answer is {readable(dialogue['gold'])}"
        ]
        for kind, piece in parts(dialogue):
            line = f"--- {readable(piece)}" if kind in ("right", "wrong") else readable(piece)
            lines.append(f"\033[{COLOURS[kind]}m{line}\033[0m" if colour else line)
        texts.append("\n".join(lines))
    return "\n\n".join(texts) or f"no dialogue is of the kind: {KINDS.get(what, what)}"


def wants_colour() -> bool:
    """Colour is for terminals, and not where NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Dialogues</title>
<meta name="viewport" content="width=device-width">
<style>
:root { color-scheme: light dark; --back: #fff; --ink: #1b1b1b; --soft: #6a6a6a; --attempt: #eaf3fb;
        --feedback: #fdf1d6; --right: #00734f; --wrong: #b03a00; --line: #d5d5d5 }
@media (prefers-color-scheme: dark) { :root { --back: #17191c; --ink: #e6e6e6; --soft: #9a9a9a; --attempt: #1d2a38;
        --feedback: #382f18; --right: #3ecf9b; --wrong: #ff8f57; --line: #3a3d42 } }
body { background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem }
nav { position: sticky; top: 0; background: var(--back); padding: .5rem 0; border-bottom: 1px solid var(--line) }
button { font: inherit; margin: .1rem; padding: .1rem .6rem; border: 1px solid var(--line); border-radius: 1rem;
         background: none; color: inherit; cursor: pointer }
button[aria-pressed=true] { background: var(--ink); color: var(--back) }
details { border-bottom: 1px solid var(--line); padding: .3rem 0 }
summary { cursor: pointer; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0; padding: .5rem .8rem; border-radius: .4rem;
      font: 13px/1.45 ui-monospace, monospace }
.prompt { color: var(--soft) } .attempt { background: var(--attempt) } .feedback { background: var(--feedback) }
.right { color: var(--right); font-weight: 600 } .wrong { color: var(--wrong); font-weight: 600 }
</style></head><body>
"""
SCRIPT = """<script>
const buttons = document.querySelectorAll("button");
buttons.forEach(button => button.onclick = () => {
  buttons.forEach(other => other.setAttribute("aria-pressed", other === button));
  for (const dialogue of document.querySelectorAll("details"))
    dialogue.hidden = !dialogue.dataset.kinds.split(" ").includes(button.dataset.kind);
});
</script></body></html>
"""


def page(models: dict[str, list[dict]]) -> str:
    """Dialogues by model name -> an HTML page of its own, with a button for each kind. Of each kind the first PER_KIND
    of a model are there."""
    counts, body = dict.fromkeys(["all", *KINDS], 0), []
    for name, dialogues in models.items():
        body.append(f"<h2>{html(name)}</h2>")
        there = dict.fromkeys(KINDS, 0)
        for dialogue in dialogues:
            of = kinds(dialogue)
            if all(there[kind] >= PER_KIND for kind in of):
                continue
            for kind in of:
                there[kind] += 1
            for kind in ["all", *of]:
                counts[kind] += 1
            mark, solved = ("right", "solved") if dialogue["correct"] else ("wrong", "not solved")
            used = f"{len(dialogue['attempts'])} of {dialogue['allowed']} attempts"
            body.append(
                f'<details data-kinds="all {" ".join(of)}"><summary><b class="{mark}">{solved}</b>, {used}: '
                f"{html(dialogue['question'][:200])}</summary>"
            )
            body += [f'<pre class="{kind}">{html(piece)}</pre>' for kind, piece in parts(dialogue)]
            body.append(f"<p>The gold answer is <code>{html(dialogue['gold'])}</code>.</p></details>")
    asked = sum(map(len, models.values()))
    left_out = f" of {asked}: of each kind and model the first {PER_KIND}" if counts["all"] < asked else ""
    intro = f"<h1>Dialogues</h1><p>{counts['all']}{left_out}</p><nav>"
    buttons = [
        f'<button data-kind="{kind}" aria-pressed="{str(kind == "all").lower()}">{KINDS.get(kind, "all")} '
        f"({count})</button>"
        for kind, count in counts.items()
    ]
    return HEAD + intro + "\n".join([*buttons, "</nav>", *body]) + "\n" + SCRIPT
