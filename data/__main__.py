"""`python -m data`: the table of data sets."""

from data import EASY, RIDDLES, SETS, SOURCES

for name in RIDDLES:
    print(f"{name:24} generated")
for name in EASY:
    print(f"{name:24} {name.replace('-easy', '')}, the questions that one operation answers")
for name, (file, start, end, *_) in SETS.items():
    share = f"about {end - start}% of " if end - start < 100 else ""
    print(f"{name:24} {share}{SOURCES[file][0]}")
print(f"{'NAME.jsonl':24} your own file: one object with 'question' and 'answer' per line")
