"""Evaluate: how many questions does a model solve when 1, 2, ... attempts are allowed?

    python evaluate.py --model runs/NAME/model --data math500
    python evaluate.py --model runs/NAME/model,Qwen/Qwen2.5-Math-1.5B --data paper --attempts 7     # the paper's figure
    python evaluate.py --model FOLDER --data mine.jsonl --samples 20 --show 3 --show_what fixed

Every question is asked anew with each number of attempts, greedily, as the prompt names the number (paper, section 4).
With --samples, independent single attempts at temperature 1 give pass@k, the control for attempts with feedback. A
model that train.py wrote is asked as in its run, with the budget, feedback and chat template of the run, unless the
command line says otherwise.

The folder --out gets results.json, table.md, accuracy.png, dialogues-MODEL.json with all attempts and verdicts,
dialogues.html to look at them, and journals (support/journal.py): the same command again, or one with more questions,
attempts or samples, asks only what is not finished.
"""

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from pathlib import Path

import torch

from data import Problem, load_sets
from data.chat import Chat
from reward import extract_boxed, is_equal, reward
from rollout import Dialogues, Rules, rollout
from support.cli import NOT_NEGATIVE, POSITIVE, check_ranges, fail, one_of, option, parse, require
from support.files import output_folder, save_json, save_text
from support.journal import Journal, fingerprint, grader_version
from support.models import check_fit, load_model, pick_device, pick_dtype
from support.plots import BENCHMARK_NAMES, PAPER_CURVES, plot_accuracy, short, tables
from support.show import KINDS, page, shown, wants_colour
from support.statistics import compare, gain, mean_over, pass_at_k, repeated_share, wilson

RULES = Rules(extract_boxed, is_equal, reward)
# Dialogues are asked for in chunks, this many for each slot; a kill loses the last chunk. Between two chunks the engine
# runs empty, which costs little on a CPU; a GPU's step takes about as long for a few rows as for many.
CHUNK_CPU, CHUNK = 4, 16
FROM_THE_RUN = "max_new_tokens", "max_attempt_tokens", "chat_template", "feedback"


@dataclass
class Options:
    model: str = option(..., "model folder or hub name; several, separated by commas, are asked the same questions")
    data: str = option(..., "names that `python -m data` lists or .jsonl files, separated by commas; paper: its five")
    attempts: int = option(5, "ask every question with 1, 2, ... up to this many attempts allowed", POSITIVE)
    out: str | None = option(None, "output folder; none: runs/evaluate/MODEL-DATA")
    limit: int | None = option(None, "of each data set only this many questions, shuffled by --seed", POSITIVE)
    slots: int = option(256, "dialogues written side by side; lower it when memory runs out", POSITIVE)
    max_new_tokens: int = option(3000, "token budget of a dialogue after its prompt, feedback included", POSITIVE)
    max_attempt_tokens: int | None = option(None, "token budget of a single attempt; none: no such limit", POSITIVE)
    chat_template: str = option("chatml", "how the model writes chat turns: chatml or llama3")
    feedback: str = option("paper", "after a wrong attempt: paper, uncounted or uninformative (a control)")
    samples: int = option(0, "independent samples a question for pass@k, at temperature 1; 0: none")
    show: int = option(0, "print this many dialogues of each model", NOT_NEGATIVE)
    show_what: str = option("fixed", "which: first, fixed, never, repeated, truncated or all", one_of(*KINDS, "all"))
    device: str = option("auto", "auto, cpu, cuda or mps")
    dtype: str = option("auto", "auto (bfloat16 on CUDA, float32 elsewhere), float32 or bfloat16")
    seed: int = option(0, "decides which questions --limit takes, and draws the --samples", NOT_NEGATIVE)


# -------------------- Asking and counting
def evaluate(model, chat, problems, allowed, config, temperature=0.0, seed=(0,), journal=None, progress=None):
    """For every problem a list: the record of a dialogue for each number of `allowed` attempts, from the journal or
    asked. A journal that was written with a shorter or longer `allowed` serves as well, as long as one begins like the
    other. Of `config` it reads slots, max_new_tokens and max_attempt_tokens."""
    journal = journal or Journal()
    different = dict.fromkeys(problems)
    missing = [(p, k) for p in different for k in allowed[len(journal.finished[p.question, p.answer]) :]]
    in_chunk = config.slots * (CHUNK_CPU if model.device.type == "cpu" else CHUNK) if journal.path else len(missing)
    for start in range(0, len(missing), in_chunk or 1):
        asked, numbers = zip(*missing[start : start + in_chunk])
        label = progress and f"{progress}, {start} of {len(missing)} finished"
        first = journal.count  # every dialogue has its own random numbers
        batch = rollout(model, chat, asked, numbers, RULES, config, temperature, seed, first, progress=label)
        journal.append([dialogue_record(batch, d, problem, chat) for d, problem in enumerate(asked)])
    return [journal.finished[p.question, p.answer][: len(allowed)] for p in problems]


def dialogue_record(batch: Dialogues, d: int, problem: Problem, chat: Chat) -> dict:
    """Dialogue d, for people to read and for programs that compare models question by question. `at` is where the
    text of an attempt begins in the text of the dialogue."""
    tokens, attempts = batch.tokens_DT[d, : batch.length_D[d]].tolist(), []
    for attempt in batch.attempts[d]:
        record = {key: getattr(attempt, key) for key in ("text", "answer", "correct", "truncated")}
        attempts.append(record | {"at": len(chat.text(tokens[: attempt.start]))})
    return {
        "question": problem.question,
        "gold": problem.answer,
        "allowed": int(batch.allowed_D[d]),
        "correct": attempts[-1]["correct"],
        "reward": batch.reward_D[d].item(),
        "truncated": bool(batch.truncated_D[d]),
        "tokens": int(batch.sampled_DT[d].sum()),
        "text": chat.text(tokens),
        "attempts": attempts,
    }


def accuracy_at_k(by_question: list[list[dict]]) -> dict:
    """The numbers of a data set, from the records of each question, one for each number of attempts allowed. A row for
    each such number; those after the first have their gain over it as well."""
    by_number = list(zip(*by_question))
    rows = [accuracy_row(records) for records in by_number]
    first, *later = [[record["correct"] for record in records] for records in by_number]
    for row, solved in zip(rows[1:], later):
        row |= gain(first, solved)
    return {"questions": len(by_question), "by_attempts": rows}


def accuracy_row(records: Sequence[dict]) -> dict:
    """The numbers of dialogues in which the same number of attempts was allowed."""
    n, correct = len(records), sum(record["correct"] for record in records)
    low, high = wilson(correct, n)
    answers = [[attempt["answer"] for attempt in record["attempts"]] for record in records]
    row = {"attempts": records[0]["allowed"], "questions": n, "correct": correct, "accuracy": correct / n}
    truncated, tokens = ([record[key] for record in records] for key in ("truncated", "tokens"))
    return row | {"low": low, "high": high} | means_over_dialogues(answers, truncated, tokens)


def training_metrics(batch: Dialogues) -> dict:
    """The numbers of a step of training. accuracy_by_attempt[k - 1]: of the dialogues that were allowed k attempts or
    more, the share that was solved within k."""
    solved_at_D = torch.where(batch.correct_D, batch.used_D, torch.iinfo(torch.long).max)
    most = int(batch.allowed_D.max())
    by_attempt = [(solved_at_D[batch.allowed_D >= k] <= k).float().mean().item() for k in range(1, most + 1)]
    answers = [[attempt.answer for attempt in attempts] for attempts in batch.attempts]
    means = means_over_dialogues(answers, batch.truncated_D, batch.sampled_DT.sum(1))
    return {
        "reward": batch.reward_D.mean().item(),
        "accuracy": batch.correct_D.float().mean().item(),
        "accuracy_first": by_attempt[0],
        "accuracy_by_attempt": by_attempt,
        "tokens_sampled": means.pop("tokens"),
        "tokens_total": batch.length_D.float().mean().item(),
        **means,
    }


def means_over_dialogues(answers: list[list[str | None]], truncated: Sequence[bool], tokens: Sequence[int]) -> dict:
    """Of each dialogue: its attempts' answers, whether a budget ended it, the tokens that the model wrote."""
    values = {"truncated": truncated, "attempts_used": list(map(len, answers)), "tokens": tokens}
    means = {key: torch.as_tensor(value).float().mean().item() for key, value in values.items()}
    return {"repeated": repeated_share(answers), **means}


# -------------------- The command
def prepare(options: Options, given: dict) -> tuple[dict[str, list[Problem]], dict[str, tuple], Path]:
    """(questions by data set, (model, chat, its options, its journals) by name, output folder), with all checked that
    can be before the long work starts."""
    check_ranges(options)
    require(options, "samples", "be 0 or at least --attempts", lambda n: n == 0 or n >= options.attempts)
    dtype = pick_dtype(options.dtype, pick_device(options.device))
    sets = load_sets(options.data)
    for problems in sets.values() if options.limit is not None else ():
        random.Random(options.seed).shuffle(problems)
        del problems[options.limit :]
    paths = [path.strip().rstrip("/") for path in options.model.split(",")]
    if "" in paths or len({file_name(path) for path in paths}) < len(paths):
        raise ValueError(f"--model must name models, each once, separated by commas, not '{options.model}'")
    names = [*paths, *(Path(name.strip()).stem for name in options.data.split(","))]
    out = Path(options.out or f"runs/evaluate/{file_name('-'.join(names))}")
    models = {}  # they wait in the machine's memory, so that a mistake in the last one shows before the first is asked
    for path in paths:
        model, tokenizer = load_model(path, pick_device("cpu"), dtype)
        own = replace(options, **{key: x for key, x in options_of_run(path).items() if key not in given})
        chat = Chat(model, tokenizer, own.chat_template, own.feedback)
        lengths = [len(chat.prompt(p.question, own.attempts)) for problems in sets.values() for p in problems]
        check_fit(model, max(lengths), own.max_new_tokens)
        models[path] = model, chat, own, open_journals(own, path, model, chat, out)
    return sets, models, output_folder(str(out))


def file_name(path: str) -> str:
    return path.strip("/").replace("/", "-")


def options_of_run(path: str) -> dict:
    """How a model was asked while train.py trained it, where its run left a config.json."""
    config = Path(path).parent / "config.json"
    saved = json.loads(config.read_text()) if config.exists() else {}
    return {name: saved[name] for name in FROM_THE_RUN} if set(FROM_THE_RUN) <= set(saved) else {}


def open_journals(options: Options, path: str, model, chat: Chat, out: Path) -> dict[str, Journal]:
    """A model's journals, with all settings that decide its answers and the verdicts. --data, --limit, --attempts and
    --samples only choose what is asked; --slots and --device change speed and rounding."""
    prompt, feedback = chat.text(chat.prompt("How much is 1 + 1?", 2)), chat.text(chat.feedback_after(-1, 1))
    settings = {"model": path, "model content": fingerprint(model, chat.tokenizer.get_vocab(), chat.end_tokens)}
    settings |= {"dtype": str(model.dtype), "max_new_tokens": options.max_new_tokens, "prompt": prompt}
    settings |= {"max_attempt_tokens": options.max_attempt_tokens, "grader": grader_version()}
    journals = {"greedy": Journal(out / f"greedy-{file_name(path)}.jsonl", settings | {"feedback": feedback})}
    if options.samples:  # there are many: fields that nothing reads are left out
        settings, left_out = settings | {"seed": options.seed}, ("text", "attempts", "reward")
        journals["samples"] = Journal(out / f"samples-{file_name(path)}.jsonl", settings, left_out)
    return journals


def measure(options: Options, sets: dict[str, list[Problem]], name: str, model, chat, journals: dict) -> dict:
    """{"greedy" or "samples": {data set: for every question its records}}."""
    problems = [problem for problems in sets.values() for problem in problems]
    kinds = {
        "greedy": dict(allowed=range(1, options.attempts + 1), config=options),
        "samples": dict(allowed=[1] * options.samples, config=options, temperature=1.0, seed=(options.seed, 0)),
    }
    found = {}
    for kind, journal in journals.items():
        rows = iter(evaluate(model, chat, problems, journal=journal, progress=f"{name}, {kind}", **kinds[kind]))
        found[kind] = {data: list(islice(rows, len(asked))) for data, asked in sets.items()}
    return found


def save(options: Options, sets: dict[str, list[Problem]], models: dict, asked: dict[str, dict], out: Path) -> None:
    """All files, and the tables and dialogues on the screen, from what `measure` gave for each of the models."""
    results, longest = {}, {}
    for name, found in asked.items():
        greedy = [records for by_question in found["greedy"].values() for records in by_question]
        save_json([record for records in greedy for record in records], out / f"dialogues-{file_name(name)}.json")
        longest[name] = [records[-1] for records in greedy]  # with the most attempts allowed: these are shown
        results[name] = mean_over({data: accuracy_at_k(rows) for data, rows in found["greedy"].items()})
        if options.samples:
            sampled = {data: pass_at_k(rows, options.attempts) for data, rows in found["samples"].items()}
            results[f"{name}, pass@k of independent samples"] = mean_over(sampled)
    paired = {f"{a} : {b}": compare(asked[a]["greedy"], asked[b]["greedy"]) for a, b in combinations(asked, 2)}
    asked_with = {name: {key: getattr(own, key) for key in FROM_THE_RUN} for name, (_, _, own, _) in models.items()}
    result = {"options": vars(options), "asked_with": asked_with, "models": results, "paired": paired}
    save_json(result, out / "results.json")
    plot_accuracy(results, out / "accuracy.png", paper=PAPER_CURVES if set(sets) == set(BENCHMARK_NAMES) else {})
    text = tables(f"{', '.join(short(sets))}: {sum(map(len, sets.values()))} questions", results, paired)
    save_text(text + "\n", out / "table.md")
    save_text(page(longest), out / "dialogues.html")
    print(text)
    for name, records in longest.items() if options.show else ():
        print(f"\n{name}\n\n{shown(records, options.show, options.show_what, wants_colour())}")
    print(f"\nwritten to {out}/")


def main(argv: list[str] | None = None) -> None:
    given, kept = parse(Options, sys.argv[1:] if argv is None else argv, __doc__), ""
    options = Options(**given)
    try:
        sets, models, out = prepare(options, given)
        asked, device, kept = {}, pick_device(options.device), "; what is finished is kept, start again to go on"
        for name, (model, chat, own, journals) in models.items():
            asked[name] = measure(own, sets, name, model.to(device), chat, journals)
            model.cpu()
        save(options, sets, models, asked, out)
    except KeyboardInterrupt:
        print(f"\nstopped{kept}", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:  # later than in prepare: too little memory, a full disk
        fail(f"{error}{kept}")


if __name__ == "__main__":
    main()
