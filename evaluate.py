"""Evaluate: model -> accuracy when 1..K attempts are allowed.

    python evaluate.py --model runs/base,runs/trained --data riddles-test
    python evaluate.py --model Qwen/Qwen2.5-Math-1.5B --data math500 --limit 100 --attempts 7

Every question is asked K times: with a prompt that allows 1 attempt, with one that allows 2, and so on (paper, section
4). Decoding is greedy, with the engine and the grader of training; a question is solved when one of the attempts is
correct. Added to what the paper reports: 95% intervals, the share of repeated answers, and every dialogue. The folder
--out gets results.json, dialogues-MODEL.json with all attempts and verdicts, and accuracy.png.
"""

import difflib
import json
import os
import random
import re
import sys
import tempfile
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Callable, NoReturn, get_args, get_type_hints

from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from data import Problem, load
from data.chat import Chat
from data.models import check_fit, load_model, pick_device, pick_dtype
from reward import Grader, extract_boxed, reward
from rollout import Attempt, Dialogues, rollout

# Okabe-Ito: told apart with every kind of colour vision; the markers do the same in print.
COLOURS, MARKERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"), "osD^vPX"


@dataclass
class Options:
    model: str = HfArg(help="model folder or hub name; several, separated by commas, are asked the same questions")
    data: str = HfArg(help="a data set that `python -m data` lists, or the path of a .jsonl file")
    attempts: int = HfArg(default=5, help="ask every question with 1, 2, ... up to this many attempts allowed")
    out: str | None = HfArg(default=None, help="output folder; none: runs/evaluate/MODEL-DATA")
    limit: int | None = HfArg(default=None, help="only the first so many questions after a shuffle seeded by --seed")
    slots: int = HfArg(default=256, help="dialogues written side by side; lower it when memory runs out")
    max_new_tokens: int = HfArg(default=3000, help="token budget of a dialogue after its prompt, feedback included")
    max_attempt_tokens: int | None = HfArg(default=None, help="token budget of a single attempt; none: no such limit")
    chat_template: str = HfArg(default="chatml", help="how the model writes chat turns: chatml or llama3")
    device: str = HfArg(default="auto", help="auto, cpu, cuda or mps")
    dtype: str = HfArg(default="auto", help="auto (bfloat16 on CUDA, float32 elsewhere), float32 or bfloat16")
    seed: int = HfArg(default=0, help="decides which questions --limit takes; greedy decoding draws nothing")


def evaluate(model, tokenizer, problems: list[Problem], *, attempts: int = 5, grade: Callable, template: str = "chatml",
             temperature: float = 0.0, seed: int = 0, **budgets) -> dict:
    """Ask every question with 1, 2, ... `attempts` attempts allowed. `grade` and `budgets` (slots, max_new_tokens,
    max_attempt_tokens, progress) are rollout()'s. Returns what JSON can hold: {"questions": n, "by_attempts": [summary
    for each number allowed], "dialogues": [record of each, by question and then by number allowed]}."""
    # One rollout for all, so that the grid runs empty only once; the dialogues that may become longest go first.
    asked, allowed = problems * attempts, [k for k in range(attempts, 0, -1) for _ in problems]
    batch = rollout(
        model, tokenizer, [p.question for p in asked], [p.answer for p in asked], allowed, extract=extract_boxed,
        grade=grade, reward=reward, template=template, temperature=temperature, seed=(seed,), **budgets)
    text = Chat(model, tokenizer, template).text
    order = sorted(range(len(asked)), key=lambda d: (d % len(problems), allowed[d]))
    return {"questions": len(problems), "by_attempts": [summary(batch, k) for k in range(1, attempts + 1)],
            "dialogues": [record(batch, d, asked[d], text) for d in order]}


def summary(batch: Dialogues, allowed: int) -> dict:
    """The numbers of the dialogues in which so many attempts were allowed."""
    rows_D = batch.allowed_D == allowed
    n, correct = int(rows_D.sum()), int(batch.correct_D[rows_D].sum())
    low, high = wilson(correct, n)
    means = {"truncated": batch.truncated_D, "attempts_used": batch.used_D, "tokens": batch.sampled_DT.sum(1)}
    return {"attempts": allowed, "questions": n, "correct": correct, "accuracy": correct / n, "low": low, "high": high,
            "repeated": repeated_share([batch.attempts[d] for d in rows_D.nonzero()[:, 0].tolist()]),
            **{key: values_D[rows_D].float().mean().item() for key, values_D in means.items()}}


def record(batch: Dialogues, d: int, problem: Problem, text: Callable[[list[int]], str]) -> dict:
    """Dialogue d, for people to read and for programs that compare models question by question."""
    return {
        "question": problem.question, "gold": problem.answer, "allowed": int(batch.allowed_D[d]),
        "correct": batch.attempts[d][-1].correct, "reward": batch.reward_D[d].item(),
        "truncated": bool(batch.truncated_D[d]), "text": text(batch.tokens_DT[d, : batch.length_D[d]].tolist()),
        "attempts": [{key: getattr(attempt, key) for key in ("text", "answer", "correct", "truncated")}
                     for attempt in batch.attempts[d]],
    }


def repeated_share(dialogues: list[list[Attempt]]) -> float | None:
    """Of the attempts after the first that have a box: the share that gives an earlier answer of the same dialogue
    again, letter for letter but for spaces around it. None when there is no such attempt."""
    repeated = []
    for attempts in dialogues:
        answers = [None if attempt.answer is None else attempt.answer.strip() for attempt in attempts]
        repeated += [answer in answers[:i] for i, answer in enumerate(answers) if i and answer is not None]
    return sum(repeated) / len(repeated) if repeated else None


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95% interval of a share: Wilson's score interval, sound for few questions and near 0 and 1; (0, 1) for n = 0."""
    z2 = 1.959964**2
    centre, half = correct + z2 / 2, (z2 * (correct * (n - correct) / max(n, 1) + z2 / 4)) ** 0.5
    return max(0.0, (centre - half) / (n + z2)), min(1.0, (centre + half) / (n + z2))


def table(results: dict[str, dict]) -> str:
    """Results of evaluate() by model name -> a markdown table that reads as plain text: a column a model, in %."""
    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.1f}"

    models = [result["by_attempts"] for result in results.values()]
    lines = [["attempts allowed", *results]]
    for rows in zip(*models, strict=True):
        cells = (f"{percent(row['accuracy'])} ({percent(row['low'])} - {percent(row['high'])})" for row in rows)
        lines.append([str(rows[0]["attempts"]), *cells])
    if len(models[0]) > 1:
        gains = (100 * (rows[1]["accuracy"] - rows[0]["accuracy"]) for rows in models)
        lines.append(["gain from 1 to 2", *(f"{gain:+.1f}" for gain in gains)])
    at = f"at {models[0][-1]['attempts']}"
    for label, key in (("repeated answers", "repeated"), ("truncated", "truncated")):
        lines.append([f"{label} {at}", *(percent(rows[-1][key]) for rows in models)])
    lines.append([f"tokens a question {at}", *(f"{rows[-1]['tokens']:.0f}" for rows in models)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in lines)


def plot_accuracy(results: dict[str, dict], path: str | Path) -> None:
    """Accuracy against attempts allowed (the paper's main figure): a line a model, its 95% interval as a band."""
    from matplotlib.figure import Figure  # without pyplot: needs no display, leaves no state behind
    axes = Figure(figsize=(6.4, 4.2), dpi=160, layout="constrained").subplots()
    for (name, result), colour, marker in zip(results.items(), cycle(COLOURS), cycle(MARKERS)):
        allowed = [row["attempts"] for row in result["by_attempts"]]
        middle, low, high = ([100 * row[key] for row in result["by_attempts"]] for key in ("accuracy", "low", "high"))
        axes.fill_between(allowed, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(allowed, middle, color=colour, marker=marker, linewidth=2, label=name)
    axes.set(xlabel="attempts allowed", ylabel="questions solved (%), 95% interval", xticks=allowed)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    axes.figure.savefig(path)


def plot_training(metrics: list[dict], path: str | Path) -> None:
    """Training curves from the rows of metrics.jsonl: thin as measured, thick their running mean."""
    from matplotlib.figure import Figure
    panels = {"reward": {"reward": "reward"},
              "dialogues solved (%)": {"accuracy": "by the last attempt", "accuracy_first": "by the first attempt"},
              "repeated answers (%)": {"repeated": "repeated answers"}}
    figure = Figure(figsize=(9.6, 3), dpi=160, layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels)), panels.items()):
        for (key, label), colour in zip(curves.items(), COLOURS):
            rows = [row for row in metrics if row.get(key) is not None]
            steps, values = [row["step"] for row in rows], [row[key] * (100 if "%" in title else 1) for row in rows]
            reach = len(values) // 40  # the running mean looks so far to both sides
            windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
            mark = "." if len(values) < 20 else None  # a line through a single point would be invisible
            axes.plot(steps, [sum(w) / len(w) for w in windows], color=colour, marker=mark, linewidth=2, label=label)
        axes.set(xlabel="step", title=title)
        axes.grid(axis="y", alpha=0.3)
        if len(curves) > 1:
            axes.legend()
    figure.savefig(path)


def save_json(result, path: str | Path) -> None:
    """Whoever looks at the file, at whatever moment, sees the whole old one or the whole new one."""
    part = Path(f"{path}.{os.getpid()}.part")
    part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def fail(message: object) -> NoReturn:
    """One sentence on stderr, exit code 2."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse(kind: type, argv: list[str] | None = None, defaults: dict | None = None):
    """The command line as an instance of the flat dataclass `kind`; `defaults` go before the dataclass's own. A field
    that may be None takes "none" too. Whatever is wrong ends the program with one sentence."""
    argv = sys.argv[1:] if argv is None else argv
    parser = HfArgumentParser(kind)
    parser.set_defaults(**(defaults or {}))
    parser.error = fail
    for action in parser._actions:
        if type(None) in get_args(get_type_hints(kind).get(action.dest)):
            def or_none(word: str, convert=action.type):
                return None if word.lower() == "none" else convert(word)
            or_none.__name__, action.type = action.type.__name__, or_none  # the name appears in argparse's messages
    # Unknown options first: argparse would rather complain that --model is missing than mention --modle.
    known = [option for action in parser._actions for option in action.option_strings]
    for option in (word.split("=")[0] for word in argv):
        if re.match("--?[A-Za-z]", option) and option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            fail(f"there is no option {option}" + (f": did you mean {near[0]}?" if near else ", see --help"))
    options, rest = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    return fail(f"'{rest[0]}' belongs to no option, see --help") if rest else options


def prepare(options: Options) -> tuple[list[Problem], dict[str, tuple], Path]:
    """(questions, models by name, output folder), with all checked that can be before the long work starts."""
    for name in ("attempts", "limit", "slots", "max_new_tokens", "max_attempt_tokens", "seed"):
        value, least = getattr(options, name), int(name != "seed")
        if value is not None and value < least:
            raise ValueError(f"--{name} must be {least} or more, not {value}")
    dtype = pick_dtype(options.dtype, pick_device(options.device))
    problems = load(options.data)
    if options.limit is not None:
        random.Random(options.seed).shuffle(problems)
        problems = problems[: options.limit]
    paths = [path.strip().rstrip("/") for path in options.model.split(",")]
    if "" in paths or len(set(paths)) < len(paths):
        raise ValueError(f"--model must name models, each once, separated by commas, not '{options.model}'")
    models = {}  # they wait in the machine's memory, so that a mistake in the last one shows before the first is asked
    for path in paths:
        model, tokenizer = models[path] = load_model(path, pick_device("cpu"), dtype)
        chat = Chat(model, tokenizer, options.chat_template)
        check_fit(model, max(len(chat.prompt(p.question, options.attempts)) for p in problems), options.max_new_tokens)
    out = Path(options.out or "runs/evaluate/" + "-".join([*paths, Path(options.data).stem]).replace("/", "-"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise OSError(f"the output folder {out} cannot be written ({error.strerror}): choose another --out") from None
    return problems, models, out


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv)
    try:
        problems, models, out = prepare(options)
    except (ValueError, OSError) as error:
        fail(error)
    results, device = {}, pick_device(options.device)
    same = {key: getattr(options, key) for key in ("attempts", "slots", "max_new_tokens", "max_attempt_tokens", "seed")}
    with Grader() as grader:
        for name, (model, tokenizer) in models.items():
            results[name] = evaluate(model.to(device), tokenizer, problems, grade=grader.submit, progress=name,
                                     template=options.chat_template, **same)
            model.cpu()
            save_json(results[name].pop("dialogues"), out / f"dialogues-{name.replace('/', '-')}.json")
    save_json({"options": vars(options), "models": results}, out / "results.json")
    plot_accuracy(results, out / "accuracy.png")
    print(f"{options.data}, {len(problems)} questions, % with 95% interval\n\n{table(results)}\n\nwritten to {out}/")


if __name__ == "__main__":
    main()
