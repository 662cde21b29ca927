"""Problem sets: `load(name)` gives a list of problems, each a question and its gold answer.

    from data import load
    problems = load("gsm8k-train")            # a name from the table below
    problems = load("my_questions.jsonl")     # your own: one {"question": ..., "answer": ...} a line
    sets = load_sets("aime24,math500")        # several, by name; "paper": the paper's five benchmarks
    python -m data                            # the table of names
    python -m data gsm8k-test --limit 3       # how many problems, and the first ones

Published files are downloaded once into a cache folder (MULTI_ATTEMPT_CACHE, else ~/.cache/multi-attempt) from a
pinned commit, and checked against their git blob id whenever they are read. Without a network, put them there by hand.

How a published file becomes training, validation and test questions:
- Two questions are the same when they differ only in whitespace and capitals. One copy is kept; where the copies
  disagree about the answer, none is, since nobody can say which is right (one question in MAWPS).
- Validation is cut out of the training file, never out of a test file, and MAWPS, which is one file, is cut in three.
  The letters of the question decide where it goes, so a story told again with other numbers stays on the same side.
- Training and validation leave out every question of the family's test file. `math-train` therefore needs the
  MATH-500 file as well, and stops without it: silently training on test questions would be worse.
The paper trains on the whole of its MATH file; `math-train` is about 95% of it.
"""

import difflib
import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str  # the gold answer, LaTeX or plain


# ---- Row readers: one row of a file -> (question, answer). A ValueError says what is wrong with the row.

KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _text(row: dict, key: str, expected: str = "text") -> str:
    if not isinstance(row.get(key), str):
        raise ValueError(f"'{key}' is {KINDS[type(row[key])] if key in row else 'missing'} (expected {expected})")
    return row[key]


def _text_or_number(row: dict, key: str) -> str:
    """27.0 becomes "27" and 1e-3 "0.001": no model would write the answer as Python prints it."""
    value = row.get(key)
    if type(value) not in (int, float):  # a bool is an int to isinstance, but no answer
        return _text(row, key, "text or a number")
    if value in (float("inf"), float("-inf")):  # what 1e999 is read as
        raise ValueError(f"'{key}' is too large a number")
    return format(Decimal(repr(value + 0)), "f").removesuffix(".0")  # + 0 turns -0.0 into 0.0


def _columns(question: str, answer: str) -> Callable[[dict], tuple[str, str]]:
    return lambda row: (_text(row, question), _text_or_number(row, answer))


_yours, _contest, _mawps = _columns("question", "answer"), _columns("problem", "answer"), _columns("input", "target")


def _gsm8k(row: dict) -> tuple[str, str]:
    _, mark, answer = _text(row, "answer").rpartition("####")
    if not mark:
        raise ValueError("'answer' has no '####' (expected the final answer after it)")
    return _text(row, "question"), answer


def _last_box(text: str) -> str | None:
    r"""What stands in the last \boxed{...} that is closed; `\{` and `\}` are characters to print, not braces."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return text[start : start + brace.start()]
    return None


def _boxed(row: dict) -> tuple[str, str]:
    answer = _last_box(_text(row, "solution"))
    if answer is None:
        raise ValueError(r"'solution' has no closed \boxed{...} (expected the final answer in it)")
    return _text(row, "problem"), answer


def _olympiad(row: dict) -> tuple[str, str]:
    answers = row.get("final_answer")
    if not (isinstance(answers, list) and answers and isinstance(answers[0], str)):
        raise ValueError("'final_answer' is not a list that starts with text")
    # Several answers stand in one text, as in "$69$,$84$": every $ goes, not only the outer two. The context is null in
    # all rows that could be looked at; a question that has one would make no sense without it.
    context = _text(row, "context") + "\n" if row.get("context") else ""
    return context + _text(row, "question"), re.sub(r"(?<!\\)\$", "", answers[0])


def _math(row: dict) -> tuple[str, str]:
    # The file itself could not be looked at when this was written. The authors' training code takes `input` from it,
    # which it puts into the chat template (so it should be the bare question), and `ground_truth_answer`. The file with
    # "_processed_with_qwen_prompt" in its name has the chat text in `input` and the bare question in `question`.
    question = _text(row, "question" if "question" in row else "input")
    if "<|im_start|>" in question:
        raise ValueError("the question holds chat markup (expected the bare question)")
    return question, _text_or_number(row, "ground_truth_answer")


# ---- The tables: where each file comes from, and which part of which file a name stands for.


class Source(NamedTuple):
    repo: str
    commit: str
    path: str
    blob: str  # SHA-1 of b"blob <length>\0" + content, as `git hash-object` prints it
    read: Callable[[dict], tuple[str, str]]


OPENAI = ("openai/grade-school-math", "3101c7d5072418e28b9008a6636bde82a006892c")
AUTHORS = ("DualityRL/multi-attempt", "44fed9c7dfd8bbf5162344921e100986151643df")
BENCHMARK = "eval/meval/data/{}/test.jsonl".format
SOURCES = {
    "gsm8k_train.jsonl": Source(
        *OPENAI, "grade_school_math/data/train.jsonl", "7d97154b91aef28d01c3301741c81ce90039a4b1", _gsm8k
    ),
    "gsm8k_test.jsonl": Source(
        *OPENAI, "grade_school_math/data/test.jsonl", "e4c2ff4942b9a78bd74f04141224c11e28d12dc9", _gsm8k
    ),
    "math_level3to5_data.json": Source(
        *AUTHORS, "train/data/math_level3to5_data.json", "78943d9d052860ebfbb93bce4bb38bc3a9b7f53f", _math
    ),
    "math500.jsonl": Source(*AUTHORS, BENCHMARK("math500"), "2376b9a194b46c0790e197c91b7249e5f88ac09b", _boxed),
    "aime24.jsonl": Source(*AUTHORS, BENCHMARK("aime24"), "bb72e176e8d30c09cd67037e17cfc41e6ff48f70", _contest),
    "amc23.jsonl": Source(*AUTHORS, BENCHMARK("amc23"), "6894ad7c49a0b3a64210af32954f4d049d934ea0", _contest),
    "minerva_math.jsonl": Source(
        *AUTHORS, BENCHMARK("minerva_math"), "123c5cd351cac2b8ead5413bc084629d7ff651de", _boxed
    ),
    "olympiadbench.jsonl": Source(
        *AUTHORS, BENCHMARK("olympiadbench"), "ec36280b1de8f5bbee92da696c2ae84f5f6e6beb", _olympiad
    ),
    "mawps.jsonl": Source(*AUTHORS, BENCHMARK("mawps"), "c8993aec190a715ade7d66e6c78063b5823d4866", _mawps),
}
ALL = range(100)
# name: (file, which of the 100 buckets that its questions are hashed into, file whose questions are left out)
SETS: dict[str, tuple[str, range, str | None]] = {
    "gsm8k-train": ("gsm8k_train.jsonl", range(5, 100), "gsm8k_test.jsonl"),
    "gsm8k-validation": ("gsm8k_train.jsonl", range(5), "gsm8k_test.jsonl"),
    "gsm8k-test": ("gsm8k_test.jsonl", ALL, None),
    "mawps-train": ("mawps.jsonl", range(30, 100), None),
    "mawps-validation": ("mawps.jsonl", range(20, 30), None),
    "mawps-test": ("mawps.jsonl", range(20), None),
    "math-train": ("math_level3to5_data.json", range(5, 100), "math500.jsonl"),
    "math-validation": ("math_level3to5_data.json", range(5), "math500.jsonl"),
    "math500": ("math500.jsonl", ALL, None),
    "aime24": ("aime24.jsonl", ALL, None),
    "amc23": ("amc23.jsonl", ALL, None),
    "minerva": ("minerva_math.jsonl", ALL, None),
    "olympiadbench": ("olympiadbench.jsonl", ALL, None),
}
# The paper's benchmarks, which it takes the mean of, and what it calls them.
PAPER = {
    "aime24": "AIME 2024",
    "math500": "MATH-500",
    "amc23": "AMC 2023",
    "minerva": "Minerva Math",
    "olympiadbench": "OlympiadBench",
}
RIDDLES = ("riddles-train", "riddles-validation", "riddles-test")  # generated, see data/miniature.py
# the questions of MAWPS that one operation on two of their numbers answers, see data/smollm2.py
EASY = {f"mawps-easy-{split}": f"mawps-{split}" for split in ("train", "validation", "test")}


def load(name: str, cache: str | Path | None = None, base_url: str | None = None) -> list[Problem]:
    """The problems of a set, always in the same order. Whatever is wrong is one sentence in a ValueError or OSError."""
    if str(name).endswith(".jsonl"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is {'not a file' if path.exists() else 'missing'} (expected one object "
                "with 'question' and 'answer' a line)"
            )
        return _own(path)
    if name in RIDDLES:
        from data.miniature import riddles  # only here: it imports Problem from this file

        return riddles(name.removeprefix("riddles-"))
    if name in EASY:
        from data.smollm2 import easy  # as above

        return easy(load(EASY[name], cache, base_url))
    if name not in SETS:
        names = [*RIDDLES, *EASY, *SETS]
        near = difflib.get_close_matches(str(name), names, n=1)
        raise ValueError(
            f"no data set is called '{name}'{f' (did you mean {near[0]}?)' if near else ''}: expected a "
            f"path that ends in .jsonl, or one of {', '.join(names)}"
        )
    file, buckets, test_file = SETS[name]
    taken = {question_key(p.question) for p in _published(test_file, cache, base_url)} if test_file else set()
    return [
        p
        for p in _published(file, cache, base_url)
        if _bucket(p.question) in buckets and question_key(p.question) not in taken
    ]


def load_sets(names: str, cache: str | Path | None = None, base_url: str | None = None) -> dict[str, list[Problem]]:
    """The problems of several sets by name; `names` are separated by commas, and "paper" stands for all of PAPER."""
    listed = [part for name in names.split(",") for part in (PAPER if name.strip() == "paper" else [name.strip()])]
    if "" in listed or len(set(listed)) < len(listed):
        raise ValueError(f"data sets must be named each once, separated by commas, not '{names}'")
    return {name: load(name, cache, base_url) for name in listed}


def question_key(question: str) -> str:
    """Equal for questions that differ only in whitespace and capitals (MAWPS has both "buy ?" and "buy?")."""
    return "".join(question.split()).casefold()


def _bucket(question: str) -> int:
    letters = re.sub(r"[\W\d_]", "", question).casefold()
    return int(hashlib.sha256(letters.encode()).hexdigest(), 16) % 100


def _own(path: Path) -> list[Problem]:
    """Your file: a repeated question is kept once, literally the same (a capital may matter in your task); two answers
    to it are an error."""
    problems: dict[str, tuple[str, Problem]] = {}
    for where, problem in _rows(path, path.read_bytes(), _yours):
        first, kept = problems.setdefault(problem.question, (where, problem))
        if kept.answer != problem.answer:
            raise ValueError(
                f"{path}, {where}: the question of {first} again, with another answer "
                f"({problem.answer!r}, there {kept.answer!r})"
            )
    return [problem for _, problem in problems.values()]


def _published(file: str, cache: str | Path | None, base_url: str | None) -> list[Problem]:
    problems, disputed = {}, set()
    for _, problem in _rows(*_fetch(file, cache, base_url), SOURCES[file].read):
        key = question_key(problem.question)
        if problems.setdefault(key, problem).answer != problem.answer:
            disputed.add(key)
    return [problem for key, problem in problems.items() if key not in disputed]


# ---- Bytes -> rows -> problems, with the place of whatever is wrong.


def _rows(path: Path, content: bytes, read: Callable[[dict], tuple[str, str]]) -> list[tuple[str, Problem]]:
    """Every problem with its place ("line 3"). Blank lines are passed over; a .json file is one list of rows."""
    if path.suffix == ".json":
        rows = ((f"row {i}", row) for i, row in enumerate(json.loads(content), 1))
    else:  # split as bytes: a text may hold other characters that Python would call line ends
        lines = content.removeprefix(b"\xef\xbb\xbf").splitlines()
        rows = ((f"line {i}", line) for i, line in enumerate(lines, 1) if line.strip())
    problems = []
    for where, row in rows:
        try:
            row = _parse(row) if isinstance(row, bytes) else row
            if not isinstance(row, dict):
                raise ValueError(f"{KINDS[type(row)]} (expected an object, {{...}})")
            texts = [text.strip() for text in read(row)]
            for text, what in zip(texts, ("question", "answer")):
                if not text:
                    raise ValueError(f"the {what} is empty")
                if re.search("[\ud800-\udfff]", text):  # half of a \uXXXX\uXXXX pair: no tokenizer takes it
                    raise ValueError(f"the {what} holds half a character (a lone \\u escape from d800 to dfff)")
        except ValueError as error:
            raise ValueError(f"{path}, {where}: {error}") from None
        problems.append((where, Problem(*texts)))
    if not problems:
        raise ValueError(f"{path} holds no problems: expected one a line")
    return problems


def _parse(line: bytes):
    def no_constant(word):
        raise ValueError(f"{word} is no number in JSON")

    try:
        return json.loads(line.decode("utf-8"), parse_constant=no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line)") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error} (expected one object a line)") from None


# ---- The cache and the download.


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _fetch(file: str, cache: str | Path | None, base_url: str | None) -> tuple[Path, bytes]:
    """A published file's path in the cache and its content, checked; downloaded when it is not there yet."""
    source = SOURCES[file]
    path = Path(cache or os.environ.get("MULTI_ATTEMPT_CACHE") or "~/.cache/multi-attempt").expanduser() / file
    if path.exists():
        content = path.read_bytes()
        if _blob(content) != source.blob:
            raise ValueError(
                f"{path} is damaged or another file (git blob id {_blob(content)}, expected "
                f"{source.blob}): delete it, and it is downloaded again"
            )
        return path, content
    base_url = base_url or os.environ.get("MULTI_ATTEMPT_DATA_URL") or "https://raw.githubusercontent.com"
    url = f"{base_url.rstrip('/')}/{source.repo}/{source.commit}/{source.path}"
    try:
        content = _download(url, file)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise FileNotFoundError(
            f"{path} is missing and {url} could not be downloaded ({reason}): get it by other means and put it there"
        ) from None
    if _blob(content) != source.blob:
        raise ValueError(
            f"{url} gave another file than the published one (git blob id {_blob(content)}, expected "
            f"{source.blob}): get that by other means and put it at {path}"
        )
    part = path.with_name(f"{file}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)  # whoever looks, at whatever moment, sees the whole file or none
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}): name another cache folder") from None
    finally:
        if part.exists():
            part.unlink()
    return path, content


def _download(url: str, file: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        total = int(response.headers.get("Content-Length") or 0)
        content = bytearray()
        # A file has a few MB at most: it stays in memory until it is known to be right.
        with tqdm(total=total or None, desc=file, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := response.read(1 << 16):
                content += chunk
                bar.update(len(chunk))
    if len(content) < total:
        raise ConnectionError(f"the connection ended after {len(content)} of {total} bytes")
    return bytes(content)
