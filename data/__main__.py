"""`python -m data`: the table of data sets. `python -m data NAME`: how many problems it has, and the first ones."""

import argparse
import json

from data import EASY, RIDDLES, SETS, SOURCES, load

parser = argparse.ArgumentParser(prog="python -m data", description=__doc__)
parser.add_argument("name", nargs="?", help="a name from the table, or a path that ends in .jsonl")
parser.add_argument("--limit", type=int, default=3, help="how many problems to print (default 3)")
parser.add_argument("--cache", help="folder of the downloaded files (default ~/.cache/multi-attempt)")
parser.add_argument("--base_url", help="where to download from (default https://raw.githubusercontent.com)")
args = parser.parse_args()

if args.name:
    try:
        problems = load(args.name, args.cache, args.base_url)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"{args.name}: {len(problems)} problems")
    for problem in problems[: max(args.limit, 0)]:
        print(json.dumps(problem._asdict(), ensure_ascii=False))
else:
    for name in RIDDLES:
        print(f"{name:24} generated")
    for name, whole in EASY.items():
        print(f"{name:24} {whole}, the questions that one operation answers")
    for name, (file, buckets, _) in SETS.items():
        share = "" if len(buckets) == 100 else f" (about {len(buckets)}%)"
        print(f"{name:24} {SOURCES[file].address}{share}")
    print(f"{'NAME.jsonl':24} a file of yours: one object with 'question' and 'answer' a line")
