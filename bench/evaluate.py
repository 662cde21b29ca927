"""What evaluation costs beyond the rollout itself: sampled tokens per CPU-second of the two on the same dialogues.

    python bench/evaluate.py --model runs/miniature/base [--json FILE] [--questions 500] [--attempts 5] [--runs 3]

    rollout     rollout.py alone, greedy, all dialogues in one call; the verdicts from the grader
    evaluate    the command evaluate.py from its options to its last file: it loads the model, asks the same questions
                with 1, 2, ... attempts allowed, writes journal, dialogues, tables and the plot

They take turns in one process of one thread, and the table has the median of the runs. A turn that does not count comes
first: imports, the grader's workers and its cache are there for both. A small model shows evaluation at its worst, as
all that is added costs the same for a large one.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import evaluate  # noqa: E402
from reward import Grader, extract_boxed, reward  # noqa: E402
from rollout import rollout  # noqa: E402


def ask_alone(options: evaluate.Options, grade) -> tuple[int, float]:
    """(sampled tokens, CPU-seconds) of the rollout."""
    (problems,), ((model, tokenizer, _),) = (part.values() for part in evaluate.prepare(options)[:2])
    asked = [(problem, k) for problem in problems for k in range(1, options.attempts + 1)]
    start = time.process_time()
    dialogues = rollout(
        model,
        tokenizer,
        [p.question for p, _ in asked],
        [p.answer for p, _ in asked],
        [k for _, k in asked],
        extract=extract_boxed,
        grade=grade,
        reward=reward,
        max_new_tokens=options.max_new_tokens,
        temperature=0.0,
    )
    return int(dialogues.sampled_DT.sum()), time.process_time() - start


def ask_by_command(options: evaluate.Options) -> tuple[int, float]:
    """(sampled tokens, CPU-seconds) of evaluate.py; its tables are not printed."""
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate.main([f"--{name}={value}" for name, value in vars(options).items()])
    seconds = time.process_time() - start
    (path,) = Path(options.out).glob("dialogues-*.json")
    return sum(dialogue["tokens"] for dialogue in json.loads(path.read_text())), seconds


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="runs/miniature/base")
    parser.add_argument("--data", default="riddles-test")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--attempts", type=int, default=5)
    parser.add_argument("--max_new_tokens", type=int, default=160)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rates = {"rollout": [], "evaluate": []}
    with Grader() as grader:
        for turn in range(args.runs + 1):
            with tempfile.TemporaryDirectory() as out:
                options = evaluate.Options(
                    model=args.model,
                    data=args.data,
                    limit=args.questions,
                    attempts=args.attempts,
                    out=out,
                    max_new_tokens=args.max_new_tokens,
                    device="cpu",
                    dtype="float32",
                )
                found = {"rollout": ask_alone(options, grader.submit), "evaluate": ask_by_command(options)}
            (alone, _), (by_command, _) = found.values()
            if abs(by_command - alone) > 0.01 * alone:  # rounding may decide a token that is nearly a tie
                sys.exit(f"evaluate.py wrote {by_command} tokens, the rollout {alone}: that is no comparison")
            for side, (tokens, seconds) in found.items() if turn else ():
                rates[side].append(tokens / seconds)
    medians = {side: statistics.median(values) for side, values in rates.items()}
    cost = medians["rollout"] / medians["evaluate"]
    print("| | sampled tokens per CPU-second |\n|---|---|")
    for side, values in rates.items():
        print(f"| {side} | {medians[side]:,.0f} ({min(values):,.0f} - {max(values):,.0f}) |")
    print(f"\nevaluation costs {cost:.2f} times the rollout")
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        result = {"options": settings, "torch": torch.__version__, "runs": rates, "cost": cost}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
