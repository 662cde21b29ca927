"""What each part of the recipe is worth: variants of the miniature's multi-attempt run, one option away from it.

    python bench/ablations.py --seeds 0 1 2         # make ablations

The reference is the multi-attempt arm of bench/reproduce.py; its finished runs are used where they are there. Every run
has the same steps and dialogues, and is evaluated on the test questions with the feedback that it was trained with.
Two processes of one thread each go side by side, and what is finished is not repeated. Writes summary.json (accuracy of
each variant and seed at each number of attempts, repeated answers, final training reward) and table.md into --out.
"""

import json
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from reproduce import arguments, interval, mean_of, parsed, run, steps_of  # noqa: E402

from support.cli import fail, save_json  # noqa: E402

REFERENCE = "multi-attempt"
VARIANTS = {
    REFERENCE: [],
    "discount per attempt": ["--attempt_discount", "0.9"],
    "N fixed at 5": ["--min_attempts", "5"],
    "no KL": ["--kl_coef", "0"],
    "no critic": ["--group_size", "8"],
    "no format penalty": ["--unboxed_reward", "-0.5"],
    "feedback without number": ["--feedback", "uncounted"],
}
SHOWN = (1, 2, 5)  # attempts allowed
FINAL = 10  # steps of which the final training reward is the mean


def outcome(folder: Path) -> dict:
    """The numbers of a finished run. Rewards of variants that change the reward or N are not those of the others."""
    rows = json.loads((folder / "evaluation.json").read_text())["trained"]["by_attempts"]
    return {
        "accuracy": [row["accuracy"] for row in rows],
        "questions": rows[0]["questions"],
        "repeated": rows[-1]["repeated"],
        "reward": statistics.mean(row["reward"] for row in steps_of(folder)[-FINAL:]),
    }


def table(summary: dict[str, dict[str, dict]]) -> str:
    """A markdown table: a row a variant, means over the seeds, 95% t interval over them in brackets."""
    evaluated = len(next(iter(summary[REFERENCE].values()))["accuracy"])
    shown = [k for k in SHOWN if k <= evaluated]
    lines = [["variant", "option", *(f"accuracy at {k}" for k in shown), f"repeated at {evaluated}", "final reward"]]
    for name, by_seed in summary.items():
        cells = [name, f"`{' '.join(VARIANTS[name])}`" if VARIANTS[name] else ""]
        for k in shown:
            values = [100 * result["accuracy"][k - 1] for result in by_seed.values()]
            low, high = interval(values)
            cells.append(f"{statistics.mean(values):.1f}" + (f" ({low:.1f} - {high:.1f})" if len(values) > 1 else ""))
        repeated = mean_of([result["repeated"] for result in by_seed.values()])
        cells.append("-" if repeated is None else f"{100 * repeated:.1f}")
        lines.append([*cells, f"{statistics.mean(result['reward'] for result in by_seed.values()):.2f}"])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(argv: list[str] | None = None) -> None:
    parser = arguments("Variants of the miniature's multi-attempt run.", "runs/ablations", [0, 1, 2])
    parser.add_argument("--reference", type=Path, default=Path("runs/reproduce"), help="folder of bench/reproduce.py")
    args = parsed(parser, argv)
    folders = {
        name: {
            seed: (args.reference if name == REFERENCE else args.out) / f"{name.replace(' ', '-')}-{seed}"
            for seed in args.seeds
        }
        for name in VARIANTS
    }
    with ThreadPoolExecutor(2) as processes:
        futures = [
            processes.submit(
                run, folders[name][seed], ["--preset", "miniature", "--seed", str(seed), *args.extra, *options]
            )
            for seed in args.seeds
            for name, options in VARIANTS.items()
        ]
    try:
        for future in futures:
            future.result()
    except RuntimeError as error:
        fail(error)
    summary = {name: {str(s): outcome(folder) for s, folder in by_seed.items()} for name, by_seed in folders.items()}
    for path in (args.out / "summary.json", *([args.json] if args.json else [])):
        save_json(summary, path)
    (args.out / "table.md").write_text(table(summary) + "\n")
    over = ", 95% t interval over them" if len(args.seeds) > 1 else ""
    print(f"\nriddles-test, % (mean of seeds {args.seeds}{over})\n\n{table(summary)}")


if __name__ == "__main__":
    main()
