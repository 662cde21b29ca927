"""Problem sets: `load(name)` gives a list of problems, each a question and its gold answer.

    load("gsm8k-train")                # a name that `python -m data` lists
    load("my_questions.jsonl")         # your own: one {"question": ..., "answer": ...} a line
    load("mawps-easy-test,svamp-easy") # several as one list
    load_sets("aime24,math500")        # several, each by itself; "paper" means the paper's five benchmarks
    python -m data                     # the table of names

How a published file becomes training, validation and test questions:
- Of questions that differ only in whitespace and capitals, one is kept, or none if answers differ (once in MAWPS).
- Validation questions come from the training file; MAWPS is a single file, which is split in three. The letters of a
  question decide where it goes, so the same story with other numbers goes into the same part.
- Training and validation leave out every question of the family's test file. So `math-train`, about 95% of the file
  that the paper trains on, needs the MATH-500 file as well. `asdiv` leaves out the 216 questions that are in MAWPS too.

Published files are downloaded once, from a pinned commit, into the folder MULTI_ATTEMPT_CACHE, else
~/.cache/multi-attempt. Without a network, put them there by hand. They are checked whenever they are read.
"""

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Callable
from decimal import Decimal
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen


class Problem(NamedTuple):
    question: str
    gold: str  # the right answer, LaTeX or plain


def parse_json(text: bytes):
    """JSON with its numbers as text: 27.0 becomes "27" and 1e-3 "0.001", as a model would write them."""

    def decimal(digits: str) -> str:  # a huge exponent stays: its zeros would fill the memory
        return digits if re.search(r"[eE].?\d{4}", digits) else format(Decimal(digits), "f").removesuffix(".0")

    return json.loads(text, parse_int=str, parse_float=decimal)


# ---- Row readers: one row of a published file -> (question, answer).
def columns(question: str, answer: str, final: Callable[[str], str] = str) -> Callable[[dict], tuple[str, str]]:
    """A reader: the text of some columns is the question, and `final` makes the answer of another."""
    return lambda row: (" ".join(row[key].strip() for key in question.split()), final(row[answer]))


def without_unit(answer: str) -> str:
    """Cuts the unit in "9 (apples)". Clock times (3:30 p.m.) and answers of several parts stay as they are."""
    return re.sub(r"^([^(]*?)\s*\([^()]*\)$", r"\1", answer)


def last_box(solution: str) -> str | None:
    r"""The content of the last \boxed{...}; `\{` and `\}` are characters to print, not braces."""
    content = solution.rpartition("\\boxed{")[2]
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", content, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return content[: brace.start()]


def level3to5(row: dict) -> tuple[str, str]:
    # We never saw this file. The authors put its `input` into their template; their baseline's file has `question`.
    question = row["question" if "question" in row else "input"]
    if "<|im_start|>" in question:
        raise ValueError("a question of MATH holds chat markup (expected the bare question)")
    return question, row["ground_truth_answer"]


READERS: dict[str, Callable[[dict], tuple[str, str]]] = {
    "contest": columns("problem", "answer"),
    "gsm8k": columns("question", "answer", lambda solution: solution.rpartition("####")[2]),
    "minerva": columns("problem", "solution", last_box),
    # one text may hold several answers, as in "$69$,$84$"
    "olympiad": columns("question", "final_answer", lambda answers: answers[0].replace("$", "")),
    "mawps": columns("input", "target"),
    "svamp": columns("Body Question", "Answer"),
    "asdiv": columns("body question", "answer", without_unit),
    "level3to5": level3to5,
}


# ---- The tables: where each file comes from, and which part of which file a name means.
SOURCES, SETS = tomllib.loads(Path(__file__).with_name("sources.toml").read_text()).values()
PAPER = ("aime24", "math500", "amc23", "minerva", "olympiadbench")  # the paper's benchmarks; it reports their mean
RIDDLES = tuple(f"{kind}-{split}" for kind in ("riddles", "riddles-cue") for split in ("train", "validation", "test"))
# the questions that one operation answers (data/smollm2.py), of the set whose name lacks "-easy"
EASY = ("mawps-easy-train", "mawps-easy-validation", "mawps-easy-test", "svamp-easy", "asdiv-easy")


def load(name: str) -> list[Problem]:
    """The problems of one set, or of several separated by commas, in a fixed order. Mistakes: ValueError, OSError."""
    if "," in name or name == "paper":
        return sum(load_sets(name).values(), [])
    if name.endswith(".jsonl"):
        return your_file(name)
    if name in RIDDLES:
        from data.miniature import draw_riddles  # imported here because it needs PyTorch, which the rest does not

        return [Problem(r.question, r.gold) for r in draw_riddles(name.split("-")[-1], cued="-cue-" in name)]
    if name in EASY:
        from data.smollm2 import easy  # as above

        return easy(load(name.replace("-easy", "")))
    if name not in SETS:
        names = ", ".join([*RIDDLES, *EASY, *SETS])
        raise ValueError(f"no data set is called '{name}': expected a path that ends in .jsonl, or one of {names}")
    file, start, end, *left_out = SETS[name]
    tested = {question_key(p.question) for other in left_out for p in published(other)}
    return [p for p in published(file) if start <= bucket(p.question) < end and question_key(p.question) not in tested]


def load_sets(names: str) -> dict[str, list[Problem]]:
    """The problems of several sets by name; `names` are separated by commas, and "paper" means all of PAPER."""
    listed = [part for name in names.split(",") for part in (PAPER if name.strip() == "paper" else [name.strip()])]
    return {name: load(name) for name in listed}


def question_key(question: str) -> str:
    """Equal for questions that differ only in whitespace and capitals (MAWPS has both "buy ?" and "buy?")."""
    return "".join(question.split()).casefold()


def bucket(question: str) -> int:
    letters = re.sub(r"[\W\d_]", "", question).casefold()
    return int(hashlib.sha256(letters.encode()).hexdigest(), 16) % 100


def published(file: str) -> list[Problem]:
    """The problems of a file. Of duplicate questions the first is kept, or none where their answers differ."""
    address, blob_id, reader = SOURCES[file]
    content, copies = fetch(file, address, blob_id), {}
    for row in parse_json(content) if file.endswith(".json") else map(parse_json, content.splitlines()):
        problem = Problem(*(part.strip() for part in READERS[reader](row)))
        copies.setdefault(question_key(problem.question), []).append(problem)
    return [same[0] for same in copies.values() if len({problem.gold for problem in same}) == 1]


def fetch(file: str, address: str, blob_id: str) -> bytes:
    """The content of a file in the cache, downloaded first if it is not there."""
    path = Path(os.environ.get("MULTI_ATTEMPT_CACHE") or "~/.cache/multi-attempt").expanduser() / file
    url = f"https://raw.githubusercontent.com/{address}"
    if not path.exists():
        try:
            content = urlopen(url, timeout=30).read()
        except (OSError, HTTPException) as error:
            raise OSError(f"{url} cannot be read ({error}): get it by other means and put it at {path}") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{file}.{os.getpid()}")  # this process's own: another may download it too
        part.write_bytes(content)
        part.replace(path)
    content = path.read_bytes()
    if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != blob_id:
        raise ValueError(f"{path} is not the file at {url}: delete it, and it is downloaded again")
    return content


def your_file(path: str) -> list[Problem]:
    """Every line is a problem, even a repeated one; blank lines are skipped."""
    problems = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):  # bytes: text has more kinds of line ends
        if line.strip():
            try:
                problems.append(your_problem(line))
            except (ValueError, RecursionError) as error:
                expected = '{"question": text, "answer": text or a number}'
                raise ValueError(f"{path}, line {number} is not {expected} ({error})") from None
    if not problems:
        raise ValueError(f"{path} holds no problems")
    return problems


def your_problem(line: bytes) -> Problem:
    match parse_json(line):
        case {"question": str(question), "answer": str(answer)} if question.strip() and answer.strip():
            (question + answer).encode()  # ValueError for half of a surrogate pair, which no tokenizer takes
            if re.search(r"[\b\f\r](?=[a-z])|\t(?:ext|frac)\w*\{|\t(?:imes|heta)\b", f"{question}\n{answer}"):
                raise ValueError(r"a control character: write the backslash of a LaTeX command as \\ in JSON")
            gold = last_box(answer) if "\\boxed" in answer else re.split(r"\n\s*####(?!#)", f"\n{answer}")[-1]
            if not (gold or "").strip():
                raise ValueError(r"no answer in its last \boxed{} (as in MATH), or after #### (as in GSM8K)")
            return Problem(question.strip(), gold.strip())
    raise ValueError("one of them is missing, empty or something else")
