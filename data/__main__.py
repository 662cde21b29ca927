"""`python -m data`: the table of data sets. `python -m data NAME`: how many problems it has, and the first ones."""

import argparse
import json
import sys

from data import EASY, RIDDLES, SETS, SOURCES, load

parser = argparse.ArgumentParser(prog="python -m data", description=__doc__)
parser.add_argument("name", nargs="?", help="a name from the table, or a path that ends in .jsonl")
parser.add_argument("--limit", type=int, default=3, help="how many problems to print (default 3)")
parser.add_argument("--cache", help="folder of the downloaded files (default ~/.cache/multi-attempt)")
parser.add_argument("--base_url", help="where to download from (default https://raw.githubusercontent.com)")
args = parser.parse_args()
if args.limit < 0:
    parser.error("--limit must be 0 or more")

if args.name is None:
    for name in RIDDLES:
        print(f"{name:24} generated")
    for name, whole in EASY.items():
        print(f"{name:24} {whole}, what one operation answers")
    for name, (file, buckets, _) in SETS.items():
        share = "" if len(buckets) == 100 else f" (about {len(buckets)}%)"
        print(f"{name:24} {SOURCES[file].repo}: {SOURCES[file].path}{share}")
    print(f"{'NAME.jsonl':24} a file of yours: one object with 'question' and 'answer' a line")
    sys.exit()
try:
    problems = load(args.name, args.cache, args.base_url)
except (ValueError, OSError) as error:
    sys.exit(print(f"{parser.prog}: {error}", file=sys.stderr) or 2)
print(f"{args.name}: {len(problems)} problems")
for problem in problems[: args.limit]:
    print(json.dumps(vars(problem), ensure_ascii=False))
