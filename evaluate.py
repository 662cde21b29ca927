"""Evaluate: model -> accuracy when 1..K attempts are allowed.

    python evaluate.py --model runs/base,runs/trained --data riddles-test
    python evaluate.py --model Qwen/Qwen2.5-Math-1.5B --data math500 --limit 100 --attempts 7 --samples 20
    python evaluate.py --model runs/NAME/model --data paper --attempts 7 --show 5

Every question is asked K times: with a prompt that allows 1 attempt, with one that allows 2, and so on (paper, section
4). Decoding is greedy, with the engine and the grader of training; a question is solved when one of the attempts is
correct. Several data sets give the mean of their accuracies, as in the paper. Added to what the paper reports: 95%
intervals, an exact test between two models, the share of repeated answers, every dialogue, and with --samples what as
many independent samples would solve.

The folder --out gets results.json, table.md, accuracy.png, dialogues-MODEL.json with all attempts and verdicts,
dialogues.html to look at them, and journals (support/journal.py): the same command again, or one with more questions,
attempts or samples, asks only what is not finished.
"""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from transformers.hf_argparser import HfArg

from data import PAPER, Problem, load_sets
from data.chat import Chat
from data.dialogues import Dialogues
from reward import Grader, extract_boxed, reward
from rollout import rollout
from support.cli import fail, need, output_folder, parse, save_json, whole
from support.journal import fingerprint, finish, read_journal
from support.models import check_fit, load_model, pick_device, pick_dtype
from support.plots import PAPER_CURVES, plot_accuracy, plot_benchmarks, short, tables
from support.show import KINDS, page, shown, wants_colour
from support.statistics import compare, gain, mean_over, pass_at_k, repeated_share, wilson

# Dialogues are asked for in chunks of so many a slot; a kill loses the last one. Between two chunks the grid runs
# empty, which costs little on a CPU; a GPU's step takes about as long for a few rows as for many.
CHUNK_CPU, CHUNK = 4, 16


@dataclass
class Options:
    model: str = HfArg(help="model folder or hub name; several, separated by commas, are asked the same questions")
    data: str = HfArg(help="names that `python -m data` lists or .jsonl files, separated by commas; paper: its five")
    attempts: int = HfArg(default=5, help="ask every question with 1, 2, ... up to this many attempts allowed")
    out: str | None = HfArg(default=None, help="output folder; none: runs/evaluate/MODEL-DATA")
    limit: int | None = HfArg(default=None, help="of each data set only so many questions, shuffled by --seed")
    slots: int = HfArg(default=256, help="dialogues written side by side; lower it when memory runs out")
    max_new_tokens: int = HfArg(default=3000, help="token budget of a dialogue after its prompt, feedback included")
    max_attempt_tokens: int | None = HfArg(default=None, help="token budget of a single attempt; none: no such limit")
    chat_template: str = HfArg(default="chatml", help="how the model writes chat turns: chatml or llama3")
    feedback: str = HfArg(default="paper", help="after a wrong attempt: paper, uncounted or uninformative (a control)")
    samples: int = HfArg(default=0, help="independent samples a question for pass@k, at temperature 1; 0: do without")
    show: int = HfArg(default=0, help="print so many dialogues of each model")
    show_what: str = HfArg(default="fixed", help="which: first, fixed, never, repeated, truncated or all")
    device: str = HfArg(default="auto", help="auto, cpu, cuda or mps")
    dtype: str = HfArg(default="auto", help="auto (bfloat16 on CUDA, float32 elsewhere), float32 or bfloat16")
    seed: int = HfArg(default=0, help="decides which questions --limit takes, and draws the --samples")


def ask(
    model,
    tokenizer,
    asked: list[tuple[Problem, int]],
    *,
    grade: Callable,
    template: str = "chatml",
    temperature: float = 0.0,
    **rest,
) -> list[dict]:
    """Have a dialogue for each (question, attempts allowed), all in one rollout. `grade` and `rest` (feedback, slots,
    max_new_tokens, max_attempt_tokens, seed, first, progress) are rollout()'s. Returns the record of each."""
    batch = rollout(
        model,
        tokenizer,
        [p.question for p, _ in asked],
        [p.answer for p, _ in asked],
        [k for _, k in asked],
        extract=extract_boxed,
        grade=grade,
        reward=reward,
        template=template,
        temperature=temperature,
        **rest,
    )
    text = Chat(model, tokenizer, template).text
    return [record(batch, d, problem, text) for d, (problem, _) in enumerate(asked)]


def evaluate(model, tokenizer, problems: list[Problem], *, attempts: int = 5, **asking) -> dict:
    """Ask every question with 1, 2, ... `attempts` attempts allowed; `asking` is ask()'s. Returns what JSON can hold:
    {"questions": n, "by_attempts": [summary for each number allowed], "dialogues": [record of each, by question and
    then by number allowed]}."""
    dialogues = ask(model, tokenizer, [(p, k) for p in problems for k in range(1, attempts + 1)], **asking)
    by_question = [dialogues[i : i + attempts] for i in range(0, len(dialogues), attempts)]
    return {**accuracy_at_k(by_question), "dialogues": dialogues}


def accuracy_at_k(asked: list[list[dict]]) -> dict:
    """The numbers of a data set; `asked` holds for every question a record for each number of attempts allowed. Rows
    after the first have their gain over it as well."""
    rows = [summary(same) for same in zip(*asked)]
    solved = [[dialogue["correct"] for dialogue in same] for same in zip(*asked)]
    for row, now in zip(rows[1:], solved[1:]):
        row |= gain(solved[0], now)
    return {"questions": len(asked), "by_attempts": rows}


def summary(dialogues: Sequence[dict]) -> dict:
    """The numbers of dialogues in which the same number of attempts was allowed."""
    n, correct = len(dialogues), sum(dialogue["correct"] for dialogue in dialogues)
    low, high = wilson(correct, n)
    answers = [[attempt["answer"] for attempt in dialogue["attempts"]] for dialogue in dialogues]
    truncated, tokens = ([dialogue[key] for dialogue in dialogues] for key in ("truncated", "tokens"))
    return {
        "attempts": dialogues[0]["allowed"],
        "questions": n,
        "correct": correct,
        "accuracy": correct / n,
        "low": low,
        "high": high,
        **averages(answers, truncated, tokens),
    }


def averages(answers: list[list[str | None]], truncated: Sequence[bool], tokens: Sequence[int]) -> dict:
    """Means over dialogues: of each its attempts' answers, whether a budget ended it, the tokens the model wrote."""
    means = {"truncated": truncated, "attempts_used": list(map(len, answers)), "tokens": tokens}
    return {
        "repeated": repeated_share(answers),
        **{key: torch.as_tensor(values).float().mean().item() for key, values in means.items()},
    }


def summarise(batch: Dialogues) -> dict:
    """The numbers of a step of training. accuracy_by_attempt[k - 1]: of the dialogues that were allowed k attempts or
    more, the share that was solved within k."""
    solved_at_D = torch.where(batch.correct_D, batch.used_D, torch.iinfo(torch.long).max)
    by_attempt = [
        (solved_at_D[batch.allowed_D >= k] <= k).float().mean().item() for k in range(1, int(batch.allowed_D.max()) + 1)
    ]
    answers = [[attempt.answer for attempt in attempts] for attempts in batch.attempts]
    means = averages(answers, batch.truncated_D, batch.sampled_DT.sum(1))
    return {
        "reward": batch.reward_D.mean().item(),
        "accuracy": batch.correct_D.float().mean().item(),
        "accuracy_first": by_attempt[0],
        "accuracy_by_attempt": by_attempt,
        "tokens_sampled": means.pop("tokens"),
        "tokens_total": batch.length_D.float().mean().item(),
        **means,
    }


def record(batch: Dialogues, d: int, problem: Problem, text: Callable[[list[int]], str]) -> dict:
    """Dialogue d, for people to read and for programs that compare models question by question. `at` is where the
    text of an attempt begins in the text of the dialogue."""
    tokens = batch.tokens_DT[d, : batch.length_D[d]].tolist()
    return {
        "question": problem.question,
        "gold": problem.answer,
        "allowed": int(batch.allowed_D[d]),
        "correct": batch.attempts[d][-1].correct,
        "reward": batch.reward_D[d].item(),
        "truncated": bool(batch.truncated_D[d]),
        "tokens": int(batch.sampled_DT[d].sum()),
        "text": text(tokens),
        "attempts": [
            {key: getattr(attempt, key) for key in ("text", "answer", "correct", "truncated")}
            | {"at": len(text(tokens[: attempt.start]))}
            for attempt in batch.attempts[d]
        ],
    }


def prepare(options: Options) -> tuple[dict[str, list[Problem]], dict[str, tuple], Path]:
    """(questions by data set, (model, tokenizer, journals) by name, output folder), with all checked that can be before
    the long work starts."""
    need(options, "attempts limit slots max_new_tokens max_attempt_tokens", "be 1 or more", lambda n: n >= 1)
    need(options, "seed show", "be 0 or more", lambda n: n >= 0)
    need(options, "samples", "be 0 or at least --attempts", lambda n: n == 0 or n >= options.attempts)
    need(options, "show_what", f"be one of {', '.join(KINDS)} or all", lambda what: what in (*KINDS, "all"))
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
        chat = Chat(model, tokenizer, options.chat_template, options.feedback)
        prompts = (chat.prompt(p.question, options.attempts) for problems in sets.values() for p in problems)
        check_fit(model, max(map(len, prompts)), options.max_new_tokens)
        models[path] = model, tokenizer, journals(options, path, model, chat, out)
        for journal in models[path][2].values():
            read_journal(*journal)
    return sets, models, output_folder(str(out))


def file_name(path: str) -> str:
    return path.strip("/").replace("/", "-")


def journals(options: Options, path: str, model, chat: Chat, out: Path) -> dict[str, tuple[Path, dict]]:
    """The journals of a model, each a file and the settings that decide its answers. --data, --limit, --attempts and
    --samples only choose what is asked; --slots and --device change speed and rounding."""
    same = {"model": path, "model content": fingerprint(model, chat), "dtype": str(model.dtype)}
    same |= {key: getattr(options, key) for key in ("max_new_tokens", "max_attempt_tokens", "chat_template")}
    own = {"greedy": {"feedback": options.feedback}, "samples": {"seed": options.seed}}
    kinds = ["greedy", "samples"] if options.samples else ["greedy"]
    return {kind: (out / f"{kind}-{file_name(path)}.jsonl", same | own[kind]) for kind in kinds}


def measure(
    options: Options, sets: dict[str, list[Problem]], name: str, model, tokenizer, files: dict, grade: Callable
) -> dict[str, dict[str, list[list[dict]]]]:
    """What is not in the journals is asked. {"greedy" or "samples": {data set: for every question its records}}."""
    same = dict(
        grade=grade,
        template=options.chat_template,
        slots=options.slots,
        progress=name,
        seed=(options.seed, 0),
        max_new_tokens=options.max_new_tokens,
        max_attempt_tokens=options.max_attempt_tokens,
    )
    ways = {
        "greedy": (range(1, options.attempts + 1), {"feedback": options.feedback}, ()),
        "samples": ([1] * options.samples, {"temperature": 1.0}, ("text", "attempts", "reward")),
    }
    problems, found = [problem for problems in sets.values() for problem in problems], {}
    size = options.slots * (CHUNK_CPU if model.device.type == "cpu" else CHUNK)
    for kind, (path, settings) in files.items():
        allowed, own, left_out = ways[kind]  # there are many samples: what nobody reads of them is not kept

        def ask_chunk(chunk: list[tuple[Problem, int]], first: int) -> list[dict]:
            dialogues = ask(model, tokenizer, chunk, first=first, **same, **own)
            return [{key: value for key, value in d.items() if key not in left_out} for d in dialogues]

        rows = iter(finish(path, settings, problems, allowed, size, ask_chunk, f"{name}, {kind}"))
        found[kind] = {data: [next(rows) for _ in those] for data, those in sets.items()}
    return found


def save(options: Options, sets: dict[str, list[Problem]], asked: dict[str, dict], out: Path) -> None:
    """All files, and the tables and dialogues on the screen, from what `measure` gave for each model."""
    results, longest = {}, {}
    for name, found in asked.items():
        greedy = [same for those in found["greedy"].values() for same in those]
        save_json([dialogue for same in greedy for dialogue in same], out / f"dialogues-{file_name(name)}.json")
        longest[name] = [same[-1] for same in greedy]  # with the most attempts allowed: these are shown
        results[name] = mean_over({data: accuracy_at_k(those) for data, those in found["greedy"].items()})
        if options.samples:
            results[f"{name}, pass@k of independent samples"] = mean_over(
                {data: pass_at_k(those, options.attempts) for data, those in found["samples"].items()}
            )
    paired = {
        f"{first} : {second}": compare(asked[first]["greedy"], asked[second]["greedy"])
        for first, second in combinations(asked, 2)
    }
    save_json({"options": vars(options), "models": results, "paired": paired}, out / "results.json")
    if len(sets) > 1:
        plot_benchmarks(results, out / "accuracy.png", PAPER_CURVES if set(sets) == set(PAPER) else {})
    else:
        plot_accuracy(results, out / "accuracy.png")
    text = tables(f"{', '.join(short(sets))}: {sum(map(len, sets.values()))} questions", results, paired)
    for path, content in ((out / "table.md", text + "\n"), (out / "dialogues.html", page(longest))):
        with whole(path) as part:
            part.write_text(content, encoding="utf-8")
    print(text)
    for name, dialogues in longest.items() if options.show else ():
        print(f"\n{name}\n\n{shown(dialogues, options.show, options.show_what, wants_colour())}")
    print(f"\nwritten to {out}/")


def main(argv: list[str] | None = None) -> None:
    options, kept = parse(Options, argv), ""
    try:
        sets, models, out = prepare(options)
        asked, device, kept = {}, pick_device(options.device), "; what is finished is kept, start again to go on"
        with Grader() as grader:
            for name, (model, tokenizer, files) in models.items():
                asked[name] = measure(options, sets, name, model.to(device), tokenizer, files, grader.submit)
                model.cpu()
        save(options, sets, asked, out)
    except KeyboardInterrupt:
        print(f"\nstopped{kept}", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:  # later than in prepare: too little memory, a full disk
        fail(f"{error}{kept}")


if __name__ == "__main__":
    main()
