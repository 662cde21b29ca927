"""Evaluate: how many questions does a model solve when 1, 2, ... attempts are allowed?

    python evaluate.py --model runs/NAME/model --data math500
    python evaluate.py --model base=Qwen/Qwen2.5-Math-1.5B,ours=runs/NAME/model --data paper --attempts 7
    python evaluate.py --model FOLDER --data mine.jsonl --samples 20 --show 3 --show_what fixed  # solved later

The folder --out gets results.json, table.md, accuracy.png, dialogues-MODEL.json with all attempts and verdicts,
dialogues.html (only the dialogues with the most attempts allowed), and journals (support/journal.py): the same command
again, or one with more questions, attempts or samples, asks only what is not finished.
"""

import random
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch

from data import PAPER, Problem, load_sets
from data.chat import CHAT_TEMPLATES, FEEDBACK_HELP, TEMPLATE_HELP, Chat
from reward import RULES
from rollout import Dialogues, rollout
from support.check import check_fit, check_model
from support.cli import NOT_NEGATIVE, POSITIVE, fail, one_of, option, parse, require
from support.files import locked_folder, read_json, save_json, save_text
from support.journal import Journal, journal_settings
from support.models import load_model, pick_device, pick_dtype
from support.plots import PAPER_CURVES, plot_accuracy, tables
from support.show import KINDS, page, shown
from support.statistics import compare, gain, mean_over, pass_at_k, repeated_share, wilson

# Dialogues of a rollout, for each slot. With short rollouts a kill loses less, as the journal is written after each.
# But each ends with idle slots, which cost a GPU more: its steps take as long for few slots as for many.
PER_SLOT_CPU, PER_SLOT_GPU = 4, 16
Records = list[list[dict]]  # [q][i] is the dialogue about question q with the i-th number of attempts allowed


# -------------------- 1. Asking: model + questions -> records
def evaluate(model, chat, problems, counts, config, journal=None, progress=None, temperature=0, seed=(0,)) -> Records:
    """Ask every problem once for each number in `counts`, in a new dialogue whose prompt allows that many attempts.

    range(1, K + 1) gives the paper's curve (section 4, greedy); [1] * n with temperature 1 gives n independent samples,
    its control. What the journal has is not asked again. `config` gives slots and token budgets."""
    journal = journal or Journal()
    missing = journal.missing(problems, counts)
    per_rollout = (config.slots or len(problems)) * (PER_SLOT_CPU if model.device.type == "cpu" else PER_SLOT_GPU)
    for start in range(0, len(missing), per_rollout):
        asked, allowed = zip(*missing[start : start + per_rollout])
        label = progress and f"{progress}, {start} of {len(missing)} finished"
        if progress and not sys.stderr.isatty():  # there is no bar
            print(label, file=sys.stderr, flush=True)
        sampling = dict(temperature=temperature, seed=seed, first_index=journal.count)  # no index is used twice
        dialogues = rollout(model, chat, asked, allowed, RULES, config, **sampling, progress=label)
        journal.append([dialogue_record(dialogues, d, problem, chat) for d, problem in enumerate(asked)])
    return journal.records(problems, len(counts))


def dialogue_record(dialogues: Dialogues, d: int, problem: Problem, chat: Chat) -> dict:
    """Dialogue d, for people and programs to read. What the model wrote in an attempt is text[text_start:text_end]."""
    tokens, attempts = dialogues.tokens_DT[d, : dialogues.length_D[d]].tolist(), []
    for attempt in dialogues.attempts[d]:
        record = {key: getattr(attempt, key) for key in ("text", "answer", "correct", "truncated")}
        start, end = (len(chat.decode(tokens[:place])) for place in (attempt.start, attempt.end))
        attempts.append(record | {"text_start": start, "text_end": end})
    return {
        "question": problem.question,
        "gold": problem.gold,
        "allowed": int(dialogues.allowed_D[d]),
        "correct": attempts[-1]["correct"],
        "reward": dialogues.reward_DT[d].sum().item(),
        "truncated": bool(dialogues.truncated_D[d]),
        "tokens": int(dialogues.sampled_DT[d].sum()),
        "text": chat.decode(tokens),
        "attempts": attempts,
    }


# -------------------- 2. Counting: records -> accuracy at k
def accuracy_at_k(records: Records) -> dict:
    """The results of one data set: the share of questions solved with each number of attempts allowed, its 95% interval
    and, from the second number on, its gain over the first. `accuracy_first` is the share that the first attempt alone
    solves, `repeated` the share of later answers that were given before."""
    rows, solved_with_fewest = [], [dialogues[0]["correct"] for dialogues in records]
    for column in zip(*records):  # every question, with the same number of attempts allowed
        solved = [record["correct"] for record in column]
        answers = [[attempt["answer"] for attempt in record["attempts"]] for record in column]
        low, high = wilson(sum(solved), len(solved))
        row = {
            "attempts": column[0]["allowed"],
            "questions": len(solved),
            "accuracy_first": fmean(record["attempts"][0]["correct"] for record in column),
            "accuracy": fmean(solved),
            "low": low,
            "high": high,
            "repeated": repeated_share(answers),
            "attempts_used": fmean(map(len, answers)),
            "truncated": fmean(record["truncated"] for record in column),
            "tokens": fmean(record["tokens"] for record in column),
        }
        rows.append(row | (gain(solved_with_fewest, solved) if rows else {}))
    return {"questions": len(records), "by_attempts": rows}


# -------------------- 3. The command: models and data sets -> tables, figure, dialogues
@dataclass
class Options:
    model: str = option(..., "model folder or hub name; several, separated by commas; LABEL=FOLDER is called LABEL")
    data: str = option(..., "names that `python -m data` lists or .jsonl files, separated by commas; paper: its five")
    attempts: int = option(5, "ask every question with 1, 2, ... up to this many attempts allowed", POSITIVE)
    out: str | None = option(None, "output folder; none: runs/evaluate/MODEL-DATA")
    limit: int | None = option(None, "ask only N questions of each data set, drawn by --seed", POSITIVE)
    slots: int = option(256, "dialogues decoded in parallel; lower it when memory runs out", POSITIVE)
    max_new_tokens: int = option(3000, "token budget of a dialogue after its prompt, feedback included", POSITIVE)
    max_attempt_tokens: int | None = option(None, "token budget of a single attempt; none: no such limit", POSITIVE)
    chat_template: str = option("chatml", TEMPLATE_HELP, one_of(*CHAT_TEMPLATES, "auto"))
    feedback: str = option("paper", FEEDBACK_HELP)
    samples: int = option(0, "independent samples a question for pass@k, at temperature 1; 0: none")
    show: int = option(0, "print this many dialogues of each model, with the most attempts allowed", NOT_NEGATIVE)
    show_what: str = option("fixed", f"which: {', '.join(KINDS)} or all", one_of(*KINDS, "all"))
    device: str = option("auto", "auto, cpu, cuda or mps")
    dtype: str = option("auto", "auto: bfloat16 on CUDA, float32 elsewhere", one_of("auto", "float32", "bfloat16"))
    seed: int = option(0, "decides which questions --limit takes, and draws the --samples", NOT_NEGATIVE)


RUN_OPTIONS = "max_new_tokens", "max_attempt_tokens", "chat_template", "feedback"  # read from a run's config.json


@dataclass
class Candidate:
    """A model of the command line, how it is asked, and what it has answered."""

    name: str  # in tables and file names
    model: torch.nn.Module
    chat: Chat
    options: Options  # of the command; RUN_OPTIONS come from the model's run, unless given
    greedy: Journal  # with 1, 2, ... attempts allowed
    samples: Journal  # independent ones, with 1 attempt allowed


def read_inputs(given: dict) -> tuple[Options, dict[str, list[Problem]], dict[str, str], Path]:
    """The command's own options, questions by data set, models by name (see `name_models`) and output folder."""
    options = Options(**given)
    require(options, "samples", "be 0 or at least --attempts", lambda n: n == 0 or n >= options.attempts)
    sets = load_sets(options.data)
    if options.limit is not None:
        for problems in sets.values():
            random.Random(options.seed).shuffle(problems)
            del problems[options.limit :]
    paths = name_models(options.model)
    names = [*paths, *(name.strip().removesuffix(".jsonl") for name in options.data.split(","))]
    out = Path(options.out or f"runs/evaluate/{file_name('-'.join(names))}")
    if (out / "config.json").exists():  # its accuracy.png would be overwritten
        raise ValueError(f"{out} is the folder of a run or a model: choose another --out")
    return options, sets, paths, out


def name_models(models: str) -> dict[str, str]:
    """{name: path} of LABEL=PATH or PATH, where LABEL has no slash. | and $ would break tables and figures."""
    words = [word.strip().rstrip("/") for word in models.split(",")]
    paths = dict(word.split("=", 1) if "=" in word.split("/")[0] else (word, word) for word in words)
    files = {file_name(name) for name in paths}
    if len(files) < len(words) or "" in [*paths, *paths.values()] or set("|$\n") & set(models):
        raise ValueError(f"--model must give each model once, under its own label, without | and $, not {models!r}")
    return paths


def file_name(name: str) -> str:
    return name.strip("/").replace("/", "-")


def load_candidate(name: str, path: str, given: dict, problems: list[Problem], out: Path) -> Candidate:
    """Load and check a model, and open its journals. RUN_OPTIONS are its run's, if any, unless `given`."""
    path_of_config = Path(path).resolve().parent / "config.json"
    config = read_json(path_of_config) if path_of_config.exists() else {}
    saved = {key: config[key] for key in config.keys() & RUN_OPTIONS} if "preset" in config else {}  # it is a run's
    options = Options(**saved | given)  # the command line goes before the run, the run before the defaults
    device = pick_device(options.device)
    model, tokenizer = load_model(path, device, pick_dtype(options.dtype, device))
    chat = Chat(model, tokenizer, options.chat_template, options.feedback)
    longest_prompt = max(len(chat.prompt(problem.question, options.attempts)) for problem in problems)
    check_fit(model, longest_prompt, options.max_new_tokens)
    check_model(model, chat, rollout)
    settings = journal_settings(model, chat, options, RULES)
    greedy = Journal(out / f"greedy-{file_name(name)}.jsonl", settings)
    sample_settings = settings | {"feedback": None, "seed": options.seed}  # samples have no feedback
    file = out / f"samples-{file_name(name)}.jsonl" if options.samples else None
    samples = Journal(file, sample_settings, left_out=("text", "attempts", "reward"))  # nothing reads these
    return Candidate(name, model.cpu(), chat, options, greedy, samples)


def ask(candidate: Candidate, problems: list[Problem]) -> None:
    """Ask what the model's journals do not have. All data sets are asked together, so that slots stay full."""
    name, model, chat, options = candidate.name, candidate.model, candidate.chat, candidate.options
    model.to(pick_device(options.device))
    evaluate(model, chat, problems, range(1, options.attempts + 1), options, candidate.greedy, f"{name}, greedy")
    sampling = dict(temperature=1.0, seed=(options.seed, 0))  # 0 is not a step of training: those start at 1
    evaluate(model, chat, problems, [1] * options.samples, options, candidate.samples, f"{name}, samples", **sampling)
    model.cpu()


def report(options: Options, sets: dict[str, list[Problem]], candidates: list[Candidate], out: Path) -> None:
    """Write all files, and print tables and dialogues, from what is in the journals."""
    answered, results, to_show = {}, {}, {}
    for each in candidates:
        by_data = {data: each.greedy.records(problems, options.attempts) for data, problems in sets.items()}
        answered[each.name] = by_data
        results[each.name] = mean_over({data: accuracy_at_k(records) for data, records in by_data.items()})
        if options.samples:
            drawn = {data: each.samples.records(problems, options.samples) for data, problems in sets.items()}
            control = {data: pass_at_k(records, options.attempts) for data, records in drawn.items()}
            results[f"{each.name}, pass@k of independent samples"] = mean_over(control)
        dialogues = sum(by_data.values(), [])  # [question][number of attempts]
        save_json(sum(dialogues, []), out / f"dialogues-{file_name(each.name)}.json")
        to_show[each.name] = [same_question[-1] for same_question in dialogues]
    paired = {f"{a} : {b}": compare(answered[a], answered[b]) for a, b in combinations(answered, 2)}
    asked_with = {each.name: {key: getattr(each.options, key) for key in RUN_OPTIONS} for each in candidates}
    summary = {"options": vars(options), "asked_with": asked_with, "models": results, "paired": paired}
    text = tables(", ".join(sets), results, paired)
    if differ := [f"--{key}" for key in RUN_OPTIONS if len({asked[key] for asked in asked_with.values()}) > 1]:
        text += f"\n\nThe models were asked with different {', '.join(differ)}: give these options to ask all alike."
    save_json(summary, out / "results.json")
    save_text(text + "\n", out / "table.md")
    save_text(page(to_show), out / "dialogues.html")
    plot_accuracy(results, out / "accuracy.png", PAPER_CURVES if set(sets) == set(PAPER) else {})
    print(text)
    if options.show:
        for name, dialogues in to_show.items():
            print(f"\n{name}\n\n{shown(dialogues, options.show, options.show_what)}")
    print(f"\nwritten to {out}/")


def main(argv: list[str] | None = None) -> None:
    given, resume_hint = parse(Options, argv, __doc__), ""
    try:
        options, sets, paths, out = read_inputs(given)
        problems = sum(sets.values(), [])
        with locked_folder(out):
            # all are loaded before the first is asked: a mistake in the last one shows at once
            candidates = [load_candidate(name, path, given, problems, out) for name, path in paths.items()]
            resume_hint = "; what is finished is kept: repeat the command to resume"
            for each in candidates:
                ask(each, problems)
            report(options, sets, candidates, out)
    except (KeyboardInterrupt, ValueError, OSError, FloatingPointError, torch.OutOfMemoryError) as error:
        fail(error, resume_hint)


if __name__ == "__main__":
    main()
