"""Problem sets: `load(name)` gives a list of problems, each a question and its gold answer.

    from data import load
    problems = load("gsm8k-train")            # a name from the tables below
    problems = load("my_questions.jsonl")     # your own: one {"question": ..., "answer": ...} a line
    problems = load("mawps-easy-test,svamp-easy")    # several as one list
    sets = load_sets("aime24,math500")        # several, each by itself; "paper" means the paper's five benchmarks
    python -m data                            # the table of names
    python -m data gsm8k-test --limit 3       # how many problems, and the first ones

How a published file becomes training, validation and test questions:
- Questions that differ only in whitespace and capitals are the same. One copy is kept. Where the copies disagree about
  the answer, none is, since nobody can say which is right (one question in MAWPS).
- Validation questions come from the training file; MAWPS is a single file, which is cut in three. The letters of a
  question decide where it goes, so a story with other numbers stays on one side.
- Training and validation leave out every question of the family's test file. So `math-train`, about 95% of the file
  that the paper trains on, needs the MATH-500 file as well. `asdiv` leaves out the 216 questions that are in MAWPS too.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from decimal import Decimal
from math import inf
from pathlib import Path
from typing import NamedTuple

from data.download import fetch


class Problem(NamedTuple):
    question: str
    answer: str  # the gold answer, LaTeX or plain


# ---- Row readers: one row of a file -> (question, answer). A ValueError says what is wrong with the row.
Reader = Callable[[dict], tuple[str, str]]


def text(row: dict, key: str, or_number: bool = False) -> str:
    """27.0 becomes "27" and 1e-3 "0.001": no model would write the answer as Python prints it."""
    value = row.get(key)
    if isinstance(value, str):
        return value
    if or_number and type(value) in (int, float) and abs(value) < inf:  # isinstance would let true and false through
        return format(Decimal(repr(value + 0)), "f").removesuffix(".0")  # + 0 turns -0.0 into 0.0
    found = json.dumps(value) if key in row else "missing"
    raise ValueError(f"'{key}' is {found:.60} (expected text{' or a number' if or_number else ''})")


def columns(questions: str, answer: str, final: Callable[[str], str] = str) -> Reader:
    """Reads the question from these columns, and makes the final answer from the text of the answer's."""
    return lambda row: (
        " ".join(text(row, key).strip() for key in questions.split()),
        final(text(row, answer, or_number=True)),
    )


def without_unit(answer: str) -> str:
    """As in "9 (apples)". Clock times (3:30 p.m.) and answers of several parts stay as they are."""
    number = re.fullmatch(r"([^(]*?)\s*\([^()]*\)", answer)
    return number[1] if number else answer


def last_box(solution: str) -> str:
    r"""The content of the last \boxed{...}; `\{` and `\}` are characters to print, not braces."""
    _, box, content = solution.rpartition("\\boxed{")
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", content, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if box and depth == 0:
            return content[: brace.start()]
    raise ValueError(r"the solution has no \boxed{...}, or its last one is not closed")


def olympiad(row: dict) -> tuple[str, str]:
    answers = row.get("final_answer")
    if not (isinstance(answers, list) and answers and isinstance(answers[0], str)):
        raise ValueError("'final_answer' is not a list that starts with text")
    # The context is null in every row that we have seen. A question that has one would make no sense without it.
    question = f"{row.get('context') or ''}\n{text(row, 'question')}"
    # One text may hold several answers, as in "$69$,$84$": every $ goes, not only the outer two.
    return question, re.sub(r"(?<!\\)\$", "", answers[0])


def level3to5(row: dict) -> tuple[str, str]:
    # We had no copy of this file. The authors' code puts `input` into the chat template, so it should be the bare
    # question. In their "_processed_with_qwen_prompt" file it is the whole chat text, and `question` is the bare one.
    question = text(row, "question" if "question" in row else "input")
    if "<|im_start|>" in question:
        raise ValueError("the question holds chat markup (expected the bare question)")
    return question, text(row, "ground_truth_answer", or_number=True)


yours, contest = columns("question", "answer"), columns("problem", "answer")
gsm8k = columns("question", "answer", lambda solution: solution.rpartition("####")[2])
minerva = columns("problem", "solution", last_box)
mawps, svamp = columns("input", "target"), columns("Body Question", "Answer")
asdiv = columns("body question", "answer", without_unit)


# ---- The tables: where each file comes from, and which part of which file a name means.

OPENAI = "openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/{}.jsonl".format
AUTHORS = "DualityRL/multi-attempt/44fed9c7dfd8bbf5162344921e100986151643df/"
MATH = AUTHORS + "train/data/math_level3to5_data.json"
BENCHMARK = (AUTHORS + "eval/meval/data/{}/test.jsonl").format
# file: (owner/repository/commit/path on GitHub, blob id of the content as in data/download.py, reader of a row)
SOURCES: dict[str, tuple[str, str, Reader]] = {
    "gsm8k_train.jsonl": (OPENAI("train"), "7d97154b91aef28d01c3301741c81ce90039a4b1", gsm8k),
    "gsm8k_test.jsonl": (OPENAI("test"), "e4c2ff4942b9a78bd74f04141224c11e28d12dc9", gsm8k),
    "math_level3to5_data.json": (MATH, "78943d9d052860ebfbb93bce4bb38bc3a9b7f53f", level3to5),
    "math500.jsonl": (BENCHMARK("math500"), "2376b9a194b46c0790e197c91b7249e5f88ac09b", contest),
    "aime24.jsonl": (BENCHMARK("aime24"), "bb72e176e8d30c09cd67037e17cfc41e6ff48f70", contest),
    "amc23.jsonl": (BENCHMARK("amc23"), "6894ad7c49a0b3a64210af32954f4d049d934ea0", contest),
    "minerva.jsonl": (BENCHMARK("minerva_math"), "123c5cd351cac2b8ead5413bc084629d7ff651de", minerva),
    "olympiadbench.jsonl": (BENCHMARK("olympiadbench"), "ec36280b1de8f5bbee92da696c2ae84f5f6e6beb", olympiad),
    "mawps.jsonl": (BENCHMARK("mawps"), "c8993aec190a715ade7d66e6c78063b5823d4866", mawps),
    "svamp.jsonl": (BENCHMARK("svamp"), "4bf27bca0eaa5c641c288c9f08da822bf330e37b", svamp),
    "asdiv.jsonl": (BENCHMARK("asdiv"), "8ab1df3b44f76a9a793b81b664ffc62954fd1d4c", asdiv),
}
PAPER = ("aime24", "math500", "amc23", "minerva", "olympiadbench")  # its benchmarks, of which it takes the mean
ALL = range(100)
# name: (file, which of the 100 buckets that its questions are hashed into, file whose questions are left out)
SETS: dict[str, tuple[str, range, str | None]] = {
    "gsm8k-train": ("gsm8k_train.jsonl", range(5, 100), "gsm8k_test.jsonl"),
    "gsm8k-validation": ("gsm8k_train.jsonl", range(5), "gsm8k_test.jsonl"),
    "gsm8k-test": ("gsm8k_test.jsonl", ALL, None),
    "mawps-train": ("mawps.jsonl", range(30, 100), None),
    "mawps-validation": ("mawps.jsonl", range(20, 30), None),
    "mawps-test": ("mawps.jsonl", range(20), None),
    "asdiv": ("asdiv.jsonl", ALL, "mawps.jsonl"),
    "math-train": ("math_level3to5_data.json", range(5, 100), "math500.jsonl"),
    "math-validation": ("math_level3to5_data.json", range(5), "math500.jsonl"),
    **{name: (f"{name}.jsonl", ALL, None) for name in ("svamp", *PAPER)},
}
RIDDLES = tuple(f"{kind}-{split}" for kind in ("riddles", "riddles-cue") for split in ("train", "validation", "test"))
# the questions of a set without "-easy" that one operation answers, see data/smollm2.py
EASY = ("mawps-easy-train", "mawps-easy-validation", "mawps-easy-test", "svamp-easy", "asdiv-easy")


def load(name: str | Path) -> list[Problem]:
    """The problems of a set, or of several separated by commas, always in the same order. Whatever is wrong is one
    sentence in a ValueError or OSError."""
    name = str(name)
    if "," in name:
        return sum(load_sets(name).values(), [])
    if name.endswith(".jsonl"):
        return _your_file(Path(name).expanduser())
    if name in RIDDLES:
        from data.miniature import draw_riddles  # imported here because it needs PyTorch, which the rest does not

        drawn = draw_riddles(name.split("-")[-1], cued="-cue-" in name)
        return [Problem(riddle.question, str(hidden)) for riddle, hidden in drawn]
    if name in EASY:
        from data.smollm2 import easy  # as above

        return easy(load(name.replace("-easy", "")))
    if name not in SETS:
        names = [*RIDDLES, *EASY, *SETS]
        hint = "".join(f" (did you mean {near}?)" for near in difflib.get_close_matches(name, names, n=1))
        expected = f"expected a path that ends in .jsonl, or one of {', '.join(names)}"
        raise ValueError(f"no data set is called '{name}'{hint}: {expected}")
    file, buckets, test_file = SETS[name]
    tested = {question_key(p.question) for p in _published(test_file)} if test_file else set()
    return [p for p in _published(file) if _bucket(p.question) in buckets and question_key(p.question) not in tested]


def load_sets(names: str) -> dict[str, list[Problem]]:
    """The problems of several sets by name; `names` are separated by commas, and "paper" means all of PAPER."""
    listed = [part for name in names.split(",") for part in (PAPER if name.strip() == "paper" else [name.strip()])]
    if "" in listed or len(set(listed)) < len(listed):
        raise ValueError(f"data sets must be named each once, separated by commas, not '{names}'")
    return {name: load(name) for name in listed}


def question_key(question: str) -> str:
    """Equal for questions that differ only in whitespace and capitals (MAWPS has both "buy ?" and "buy?")."""
    return "".join(question.split()).casefold()


def _bucket(question: str) -> int:
    letters = re.sub(r"[\W\d_]", "", question).casefold()
    return int(hashlib.sha256(letters.encode()).hexdigest(), 16) % 100


def _your_file(path: Path) -> list[Problem]:
    """A question repeated to the letter is kept once (in your task a capital may matter); two answers are an error."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing or no file (expected an object with question and answer a line)")
    problems: dict[str, tuple[str, Problem]] = {}
    for where, problem in _read(path, path.read_bytes(), yours):
        first, kept = problems.setdefault(problem.question, (where, problem))
        if kept.answer != problem.answer:
            both = f"{problem.answer!r}, there {kept.answer!r}"
            raise ValueError(f"{path}, {where}: the question of {first} again, with another answer ({both})")
    return [problem for _, problem in problems.values()]


def _published(file: str) -> list[Problem]:
    address, blob_id, reader = SOURCES[file]
    path, content = fetch(file, address, blob_id)
    problems, disputed = {}, set()
    for _, problem in _read(path, content, reader):
        key = question_key(problem.question)
        if problems.setdefault(key, problem).answer != problem.answer:
            disputed.add(key)
    return [problem for key, problem in problems.items() if key not in disputed]


def _read(path: Path, content: bytes, read: Reader) -> list[tuple[str, Problem]]:
    """Every problem with its place ("line 3"). Blank lines are skipped; a .json file is one list of rows."""
    if path.suffix == ".json":
        rows = [(f"row {i}", row) for i, row in enumerate(json.loads(content), 1)]
    else:  # split as bytes: a text may hold other characters that Python would call line ends
        rows = [(f"line {i}", line) for i, line in enumerate(content.splitlines(), 1) if line.strip()]
    problems = []
    for where, row in rows:
        try:
            row = json.loads(row) if isinstance(row, bytes) else row
            if not isinstance(row, dict):
                raise ValueError(f"{json.dumps(row):.60} is no object {{...}}")
            problem = Problem(*(part.strip() for part in read(row)))
            for what, part in zip(Problem._fields, problem):
                if not part:
                    raise ValueError(f"the {what} is empty")
                part.encode()  # ValueError for half of a \uXXXX\uXXXX pair, which no tokenizer takes
        except (ValueError, RecursionError) as error:
            not_json = "not JSON: " if isinstance(row, bytes) else ""  # bytes still: json.loads failed
            raise ValueError(f"{path}, {where}: {not_json}{error}") from None
        problems.append((where, problem))
    if not problems:
        raise ValueError(f"{path} holds no problems: expected one a line")
    return problems
