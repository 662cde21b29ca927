"""The loaders on their real files, the download, and rows that are wrong. Without copies of the real files in
../shared/data, beside the repository, their tests are skipped."""

import hashlib
import json
import os
import re
import subprocess
import sys
from http.client import IncompleteRead
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import pytest

import data
from data import Problem, load
from data.smollm2 import easy

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data"


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty folder: no test sees the user's cache or reaches the network."""
    monkeypatch.setenv("MULTI_ATTEMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "urlopen", Mock(side_effect=OSError("no network")))
    return tmp_path / "cache"


@pytest.fixture
def real(monkeypatch):
    if not REAL.is_dir():
        pytest.skip("no copies of the real files")
    monkeypatch.setenv("MULTI_ATTEMPT_CACHE", str(REAL))


@pytest.fixture
def publish(monkeypatch, cache):
    """Gives a file of the table other content, which it writes into the cache; only the blob id must change too."""

    def publish(file: str, content: bytes) -> None:
        address, _, reader = data.SOURCES[file]
        monkeypatch.setitem(data.SOURCES, file, (address, git_blob_id(content), reader))
        cache.mkdir(exist_ok=True)
        (cache / file).write_bytes(content)

    return publish


def rows(*objects) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in objects).encode()


def refused(call, error_type=ValueError) -> str:
    """The one sentence of a call that fails."""
    with pytest.raises(error_type) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


COUNTS = {  # of training, validation and test questions
    "gsm8k": [7091, 382, 1319],  # 7473 + 1319 rows
    "mawps": [1314, 199, 354],  # 1868 questions in 2065 rows, less one whose copies disagree about the answer
    "mawps-easy": [764, 103, 219],
}


def assert_disjoint(splits):
    keys = [data.question_key(p.question) for split in splits for p in split]
    assert all(splits) and len(set(keys)) == len(keys)


@pytest.mark.parametrize("family", COUNTS)
def test_real_splits(family, real):
    splits = [load(f"{family}-{split}") for split in ("train", "validation", "test")]
    assert list(map(len, splits)) == COUNTS[family] and load(f"{family}-train") == splits[0]  # in the same order
    assert_disjoint(splits)
    if family == "mawps":  # the same story with other numbers is on the same side
        train, validation, test = [{re.sub(r"[\W\d_]", "", p.question).casefold() for p in s} for s in splits]
        assert not train & validation and not train & test and not validation & test
        answers = {p.gold for split in splits for p in split}
        assert {"2400000", "0.6666666667", "0.08"} <= answers
        assert not any(answer.endswith(".0") or "e" in answer for answer in answers)


def test_real_answers(real):
    names = ("gsm8k-train", "gsm8k-test", "mawps-train", "math500", "aime24", "amc23")
    gsm8k, gsm8k_test, mawps, math500, aime24, amc23 = [[p.gold for p in load(name)] for name in names]
    assert gsm8k[0] == "72" and mawps[0] == "43" and "1,450,000" in gsm8k_test
    assert len(aime24) == 30 and aime24[0] == "204" and "025" in aime24  # as published: 25 is the grader's matter
    assert len(amc23) == 40 and amc23[0] == "27" and amc23[15] == "-1"
    solutions = [json.loads(line)["solution"] for line in (REAL / "math500.jsonl").read_bytes().splitlines()]
    assert len(math500) == 500 and math500 == list(map(data.last_box, solutions))


def test_questions_that_one_operation_answers(real):
    """MAWPS has 1086 without the one whose copies disagree. ASDiv has 870: a clock time, 3:30 p.m., is no number."""
    mawps, svamp, asdiv = (easy(data.published(f"{name}.jsonl")) for name in ("mawps", "svamp", "asdiv"))
    assert [len(mawps), len(svamp), len(asdiv)] == [1086, 793, 870]
    keys = [{data.question_key(p.question) for p in problems} for problems in (mawps, svamp, asdiv)]
    assert len(keys[0] & keys[2]) == 154 and not keys[1] & (keys[0] | keys[2])
    assert (len(load("svamp-easy")), len(load("asdiv-easy")), len(load("svamp"))) == (793, 715, 1000)
    assert_disjoint([load(name) for name in ("mawps-train", "mawps-validation", "mawps-test", "asdiv", "svamp")])
    both = load("mawps-easy-test,svamp-easy")
    assert both == load("mawps-easy-test") + svamp and len(both) == 1012


def test_minerva_and_olympiadbench_rows(real):
    """Of these we have only the first 20 rows, which are not a published file: they test only the row readers."""

    def answers(name, reader):
        lines = (REAL / f"{name}_first20.jsonl").read_bytes().splitlines()
        return [data.READERS[reader](json.loads(line))[1] for line in lines]

    minerva, olympiad = answers("minerva_math", "minerva"), answers("olympiadbench", "olympiad")
    assert minerva[:6] == ["1.6", "4.5e33", "41.8", "20.39", "0.006", "np.arcsin(10/13)"] and len(minerva) == 20
    assert olympiad[:3] == ["2", r"\frac{1}{2 n+2}", "2^{1009}"] and len(olympiad) == 20
    assert {"69,84", "(1,8,19), (2,7,13), (4,5,7)", "f(n)=n, g(n)=1"} <= set(olympiad)
    assert not any("$" in answer for answer in olympiad)


def test_training_leaves_out_test_questions_and_copies(publish):
    train = [{"input": f"What is ${i}+{'x' * i}$?", "target": "-", "ground_truth_answer": str(i)} for i in range(200)]
    copy = train[5] | {"input": " what is  $5+XXXXX$?"}
    disputed = train[6] | {"ground_truth_answer": "7"}
    publish("math_level3to5_data.json", json.dumps([*train, copy, disputed]).encode())
    # it never trains on what may be test questions
    assert "math500/test.jsonl cannot be read" in refused(lambda: load("math-train"), OSError)
    publish("math500.jsonl", rows({"problem": "WHAT IS $7 + xxxxxxx$ ?", "answer": "7"}))
    splits = [load(name) for name in ("math-train", "math-validation", "math500")]
    assert_disjoint(splits)
    assert splits[0][0] == Problem("What is $0+$?", "0") and len(splits[0]) > len(splits[1])
    answers = sorted((p.gold for p in splits[0] + splits[1]), key=int)
    assert answers == [str(i) for i in range(200) if i not in (6, 7)]


def test_question_alone_decides_the_split(publish):
    """Other rows, or another order, send no question from validation to training."""
    row = [{"question": f"{'q' * i} {i}?", "answer": f"#### {i}"} for i in range(100)]
    publish("gsm8k_test.jsonl", rows(row[0]))
    publish("gsm8k_train.jsonl", rows(*row))
    before = load("gsm8k-validation")
    publish("gsm8k_train.jsonl", rows(*row[:0:-2]))
    assert before and set(load("gsm8k-validation")) == {p for p in before if int(p.gold) % 2}


BOXES = {
    r"\boxed{1} and \boxed{2}": "2",
    r"\boxed{\frac{1}{2}}.": r"\frac{1}{2}",
    r"\boxed{\{1,2\}}": r"\{1,2\}",
    r"\boxed{\left\{1\right.}": r"\left\{1\right.",
}
UNITS = {"9 (apples)": "9", "14  (seats)": "14", "1/2": "1/2"}
UNITS |= {text: text for text in ("3:30 p.m.", "8 (cups); 3 (pots)")}
ROWS = [
    *(("minerva", {"problem": "q", "solution": text}, ("q", box)) for text, box in BOXES.items()),
    *(("asdiv", {"body": "b ", "question": "q", "answer": text}, ("b q", unit)) for text, unit in UNITS.items()),
    ("olympiad", {"question": "q", "context": None, "final_answer": ["$6$,$9$"]}, ("q", "6,9")),
    ("level3to5", {"input": "<|im_start|>", "question": "q", "ground_truth_answer": "1"}, ("q", "1")),
    ("svamp", {"Body": "It has 3. ", "Question": "How many?", "Answer": "3"}, ("It has 3. How many?", "3")),
]


@pytest.mark.parametrize("read, row, problem", ROWS)
def test_peculiar_row(read, row, problem):
    assert data.READERS[read](row) == problem


GOOD = b'{"question": "q", "answer": "1"}\n'


@pytest.fixture
def own(tmp_path):
    return tmp_path / "own.jsonl"


def test_numbers_as_answers(own):
    """No answer has a .0, or an exponent unless it is huge; text keeps its comma."""
    numbers = ["27.0", "27", "-1.5", "1e20", "1e-7", "0.1", "9" * 400, '" 1,000 "', "1e-9999999999"]
    answers = ["27", "27", "-1.5", "1" + "0" * 20, "0.0000001", "0.1", "9" * 400, "1,000", "1e-9999999999"]
    own.write_text("".join(f'{{"question": "{i}", "answer": {number}}}\n' for i, number in enumerate(numbers)))
    assert [p.gold for p in load(str(own))] == answers


NOT_BOTH = "one of them is missing, empty or something else"
BAD_LINES = [
    (GOOD + b'{"question": "r"}', 2, NOT_BOTH),
    (b'\n\n{"answer": 1}', 3, NOT_BOTH),
    (b'{"question": "q", "answer": true}', 1, NOT_BOTH),
    (b'{"question": "q", "answer": ["1"]}', 1, NOT_BOTH),
    (b'{"question": "q", "answer": NaN}', 1, NOT_BOTH),
    (b'{"question": "q", "answer": "  "}', 1, NOT_BOTH),
    (b'{"question": "\\ud800", "answer": 1}', 1, "'utf-8' codec can't encode"),
    (rb'{"question": "q", "answer": "\frac12"}', 1, "a control character: write the backslash of a LaTeX"),
    (b'"q"', 1, NOT_BOTH),
    (b"[" * 200_000, 1, "maximum recursion depth exceeded"),
    (b'{"question": "r", "answer": "\\\\boxed{4"}', 1, r"no answer in its last \boxed{} (as in MATH), or after #### "),
    (b'{"question": "r", "answer": "\\\\boxed 4 or {4}\\n####"}', 1, r"no answer in its last \boxed{} ("),
    (GOOD + b'{"question": "r", ', 2, "Expecting property name"),
    (GOOD + b'{"question": "caf\xe9", "answer": 1}', 2, "'utf-8' codec can't decode byte 0xe9 in "),
]


@pytest.mark.parametrize("content, line, why", BAD_LINES)
def test_bad_line(content, line, why, own):
    own.write_bytes(content)
    expected = '{"question": text, "answer": text or a number}'
    assert refused(lambda: load(str(own))).startswith(f"{own}, line {line} is not {expected} ({why}")


def test_own_file(own):
    """Every line is a problem, even a repeated one. Of a solution only the end counts."""
    lines = ['{"question": "What is a?\u2028 ", "answer": 3, "more": null}', ""]  # \u2028 ends no line of a file
    lines += 2 * ['{"question": "What is A?", "answer": "4"}']
    solutions = r"2 + 3 = 5\n#### 5", r"1, so\n####6", r"It is \\boxed{7} or $\\boxed{\\frac{8}{9}}$."
    lines += [rf'{{"question": "\ud83d\ude00", "answer": "{solution}"}}' for solution in solutions]
    own.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    twice = [Problem("What is A?", "4")] * 2
    solved = [Problem("\U0001f600", gold) for gold in ("5", "6", r"\frac{8}{9}")]
    assert load(str(own)) == [Problem("What is a?", "3"), *twice, *solved]


def test_own_file_missing_empty_or_folder(own):
    assert f"No such file or directory: '{own}'" in refused(lambda: load(str(own)), OSError)
    own.write_bytes(b" \n\r\n")
    assert refused(lambda: load(str(own))) == f"{own} holds no problems"
    own.unlink()
    own.mkdir()
    assert f"Is a directory: '{own}'" in refused(lambda: load(str(own)), OSError)


def test_unknown_name(own):
    own.write_bytes(GOOD)
    expected = f"expected a path that ends in .jsonl, or one of {', '.join([*data.RIDDLES, *data.EASY, *data.SETS])}"
    expected = f"no data set is called 'gsm8k_test': {expected}"
    assert refused(lambda: load("gsm8k_test")) == refused(lambda: data.load_sets(f"{own},gsm8k_test")) == expected


def test_several_sets(own, publish):
    own.write_bytes(GOOD)
    found = data.load_sets(f"{own}, riddles-test")
    assert list(found) == [str(own), "riddles-test"] and found[str(own)] == [Problem("q", "1")]
    assert load(f"{own},riddles-test") == [*found[str(own)], *found["riddles-test"]]
    for i, name in enumerate(data.PAPER):
        row = {"problem": "q", "question": "q", "answer": i, "solution": rf"\boxed{{{i}}}", "final_answer": [f"${i}$"]}
        publish(f"{name}.jsonl", rows(row))
    benchmarks = ["aime24", "math500", "amc23", "minerva", "olympiadbench"]  # the paper's, in this order
    assert data.load_sets("paper") == {name: [Problem("q", str(i))] for i, name in enumerate(benchmarks)}


# ---- Cache and download

AMC = rows({"problem": "1+1?", "answer": 2.0})
AMC_URL = (
    "https://raw.githubusercontent.com/DualityRL/multi-attempt/44fed9c7dfd8bbf5162344921e100986151643df/"
    "eval/meval/data/amc23/test.jsonl"
)
TWO = [Problem("1+1?", "2")]


@pytest.fixture
def download(publish, monkeypatch, cache):
    """A server that has the file. The cache is empty."""
    publish("amc23.jsonl", AMC)
    (cache / "amc23.jsonl").unlink()
    download = Mock(side_effect=lambda url, timeout: BytesIO(AMC))
    monkeypatch.setattr(data, "urlopen", download)
    return download


def test_downloads_once(download, monkeypatch, tmp_path):
    monkeypatch.setenv("MULTI_ATTEMPT_CACHE", "~/new/cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("amc23") == load("amc23") == TWO and os.listdir(tmp_path / "new" / "cache") == ["amc23.jsonl"]
    download.assert_called_once_with(AMC_URL, timeout=30)


@pytest.mark.parametrize("error", [IncompleteRead(b"", 5), OSError("Connection refused")])
def test_failed_download(error, download, monkeypatch, cache):
    """Nothing is in the cache afterwards, and the next try starts from nothing and succeeds."""
    with monkeypatch.context() as patch:
        patch.setattr(data, "urlopen", Mock(side_effect=error))
        advice = f"get it by other means and put it at {cache / 'amc23.jsonl'}"
        assert refused(lambda: load("amc23"), OSError) == f"{AMC_URL} cannot be read ({error}): {advice}"
    assert os.listdir(cache) == []
    assert load("amc23") == TWO


def test_interrupted_write(download, monkeypatch, cache):
    """Stopped between writing and naming the file: it is not there."""
    monkeypatch.setattr(Path, "replace", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load("amc23")
    assert not (cache / "amc23.jsonl").exists()


def test_cache_that_cannot_be_written(download, cache):
    cache.rmdir()
    cache.write_text("a file, not a folder")
    assert f"File exists: '{cache}'" in refused(lambda: load("amc23"), OSError)


def test_wrong_file_in_the_cache(publish, cache):
    """Damaged, or put there by hand. It is neither used nor deleted."""
    assert git_blob_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # git's well-known empty blob
    publish("amc23.jsonl", AMC)
    path = cache / "amc23.jsonl"
    path.write_bytes(AMC[::-1])
    expected = f"{path} is not the file at {AMC_URL}: delete it, and it is downloaded again"
    assert refused(lambda: load("amc23")) == expected and path.read_bytes() == AMC[::-1]


def test_the_table_of_names():
    table = subprocess.run([sys.executable, "-m", "data"], cwd=ROOT, capture_output=True, text=True).stdout
    assert all(re.search(rf"^{name} ", table, re.MULTILINE) for name in [*data.RIDDLES, *data.EASY, *data.SETS])
