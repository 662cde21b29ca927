"""What each part of the recipe is worth: variants of the miniature's multi-attempt run, one option away from it.

    python -m bench.ablations --seeds 0 1 2               # make ablations
    python -m bench.ablations --draw SUMMARY.json OUT     # no runs: the table of finished ones

The reference is the multi-attempt arm of bench/reproduce.py; its finished runs are used where they are there. All runs
have the same steps and dialogues. Each is evaluated on the test questions with the feedback that it was trained with.
Two processes of one thread run side by side, and what is finished is not repeated. Written into --out: summary.json
(accuracy, repeated answers and final training reward of each variant and seed) and table.md.
"""

import argparse
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.reproduce import command, metrics, run, slug
from support.plots import markdown, percent
from support.seeds import t_interval
from support.statistics import mean

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


def measure(args: argparse.Namespace) -> dict[str, dict[str, dict]]:
    """All runs, and the numbers of each by variant and seed. Rewards of variants that change the reward or the number
    of attempts do not compare with the others."""
    jobs = {}
    for seed in args.seeds:
        for name, options in VARIANTS.items():
            folder = (args.reference if name == REFERENCE else args.out) / f"{slug(name)}-{seed}"
            jobs[name, str(seed)] = folder, ["--preset", "miniature", "--seed", str(seed), *args.extra, *options]
    summary = {name: {} for name in VARIANTS}
    with ThreadPoolExecutor(args.processes) as processes:
        for (name, seed), (folder, _), rows in zip(jobs, jobs.values(), processes.map(run, *zip(*jobs.values()))):
            summary[name][seed] = {
                "accuracy": [row["accuracy"] for row in rows],
                "questions": rows[0]["questions"],
                "repeated": rows[-1]["repeated"],
                "reward": statistics.mean(metrics(folder, "reward")[-FINAL:]),
            }
    return summary


def draw(summary: dict[str, dict[str, dict]], out: Path) -> None:
    """The table: a row a variant, means over the seeds, their 95% t interval in brackets."""
    seeds = list(summary[REFERENCE])
    evaluated = len(summary[REFERENCE][seeds[0]]["accuracy"])
    shown = [k for k in SHOWN if k <= evaluated]
    lines = [["variant", "option", *(f"accuracy at {k}" for k in shown), f"repeated at {evaluated}", "final reward"]]
    for name, by_seed in summary.items():
        cells = [name, f"`{' '.join(VARIANTS[name])}`" if VARIANTS[name] else ""]
        for k in shown:
            values = [result["accuracy"][k - 1] for result in by_seed.values()]
            low, high = map(percent, t_interval(values))
            cells.append(percent(statistics.mean(values)) + (f" ({low} - {high})" if len(values) > 1 else ""))
        cells.append(percent(mean([result["repeated"] for result in by_seed.values()])))
        lines.append([*cells, f"{statistics.mean(result['reward'] for result in by_seed.values()):.2f}"])
    (out / "table.md").write_text(f"{markdown(lines)}\n")
    over = ", 95% t interval over them" if len(seeds) > 1 else ""
    print(f"\nriddles-test, % (mean of seeds {', '.join(seeds)}{over})\n\n{markdown(lines)}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Variants of the miniature's multi-attempt run.")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--reference", type=Path, default=Path("runs/reproduce"), help="folder of bench/reproduce.py")
    parser.set_defaults(seeds=[0, 1, 2])
    command(parser, argv, measure, draw)


if __name__ == "__main__":
    main()
