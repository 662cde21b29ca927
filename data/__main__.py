"""`python -m data`: the table of data sets. `python -m data NAME`: how many problems it has, and the first three."""

import argparse
import json

from data import EASY, RIDDLES, SETS, SOURCES, load

parser = argparse.ArgumentParser(prog="python -m data", description=__doc__)
parser.add_argument("name", nargs="?", help="a name from the table, or a path that ends in .jsonl")
args = parser.parse_args()

if args.name:
    try:
        problems = load(args.name)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"{args.name}: {len(problems)} problems")
    for problem in problems[:3]:
        print(json.dumps(problem._asdict(), ensure_ascii=False))
else:
    table = {name: "generated" for name in RIDDLES}
    table |= {name: f"{name.replace('-easy', '')}, the questions that one operation answers" for name in EASY}
    for name, (file, buckets, _) in SETS.items():
        table[name] = (f"about {len(buckets)}% of " if len(buckets) < 100 else "") + SOURCES[file][0]
    table["NAME.jsonl"] = "a file of yours: one object with 'question' and 'answer' a line"
    for name, about in table.items():
        print(f"{name:24} {about}")
