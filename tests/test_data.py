"""The loaders on their real files, the download, and rows that are wrong. Without copies of the real files in
../shared/data, beside the repository, their tests are skipped."""

import json
import os
import re
import subprocess
import sys
from http.client import IncompleteRead
from pathlib import Path
from unittest.mock import Mock
from urllib.request import urlopen

import pytest

import data
from data import Problem, load
from data.download import git_blob_id
from data.smollm2 import easy

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data"
NOWHERE = "http://127.0.0.1:1"  # nothing listens there: a test that tries to download fails at once


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty folder: no test sees the user's cache or reaches the network."""
    monkeypatch.setenv("MULTI_ATTEMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MULTI_ATTEMPT_DATA_URL", NOWHERE)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def real(monkeypatch):
    if not REAL.is_dir():
        pytest.skip("no copies of the real files")
    monkeypatch.setenv("MULTI_ATTEMPT_CACHE", str(REAL))


@pytest.fixture
def publish(monkeypatch, cache):
    """Gives a file of the table another content and writes it into the cache; only its blob id has to follow."""

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
        answers = {p.answer for split in splits for p in split}
        assert {"2400000", "0.6666666667", "0.08"} <= answers
        assert not any(answer.endswith(".0") or "e" in answer for answer in answers)


def test_real_answers(real):
    names = ("gsm8k-train", "gsm8k-test", "mawps-train", "math500", "aime24", "amc23")
    gsm8k, gsm8k_test, mawps, math500, aime24, amc23 = [[p.answer for p in load(name)] for name in names]
    assert gsm8k[0] == "72" and mawps[0] == "43" and "1,450,000" in gsm8k_test
    assert len(aime24) == 30 and aime24[0] == "204" and "025" in aime24  # as published: 25 is the grader's matter
    assert len(amc23) == 40 and amc23[0] == "27" and amc23[15] == "-1"
    solutions = [json.loads(line)["solution"] for line in (REAL / "math500.jsonl").read_bytes().splitlines()]
    assert len(math500) == 500 and math500 == list(map(data.last_box, solutions))


def test_questions_that_one_operation_answers(real):
    """MAWPS has 1086 without the one whose copies disagree. ASDiv has 870: a clock time, 3:30 p.m., is no number."""
    mawps, svamp, asdiv = (easy(data._published(f"{name}.jsonl")) for name in ("mawps", "svamp", "asdiv"))
    assert [len(mawps), len(svamp), len(asdiv)] == [1086, 793, 870]
    keys = [{data.question_key(p.question) for p in problems} for problems in (mawps, svamp, asdiv)]
    assert len(keys[0] & keys[2]) == 154 and not keys[1] & (keys[0] | keys[2])
    assert (len(load("svamp-easy")), len(load("asdiv-easy")), len(load("svamp"))) == (793, 715, 1000)
    assert_disjoint([load(name) for name in ("mawps-train", "mawps-validation", "mawps-test", "asdiv", "svamp")])
    both = load("mawps-easy-test,svamp-easy")
    assert both == load("mawps-easy-test") + svamp and len(both) == 1012


def test_minerva_and_olympiadbench_rows(real):
    """Of these there are only the first 20 rows, which are no published file: the row readers are tested on them."""

    def answers(name, reader):
        return [reader(json.loads(line))[1] for line in (REAL / f"{name}_first20.jsonl").read_bytes().splitlines()]

    minerva, olympiad = answers("minerva_math", data.minerva), answers("olympiadbench", data.olympiad)
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
    answers = sorted((p.answer for p in splits[0] + splits[1]), key=int)
    assert answers == [str(i) for i in range(200) if i not in (6, 7)]


def test_question_alone_decides_the_split(publish):
    """Other rows, or another order, send no question from validation to training."""
    row = [{"question": f"{'q' * i} {i}?", "answer": f"#### {i}"} for i in range(100)]
    publish("gsm8k_test.jsonl", rows(row[0]))
    publish("gsm8k_train.jsonl", rows(*row))
    before = load("gsm8k-validation")
    publish("gsm8k_train.jsonl", rows(*row[:0:-2]))
    assert before and set(load("gsm8k-validation")) == {p for p in before if int(p.answer) % 2}


BOXES = {
    r"\boxed{1} and \boxed{2}": "2",
    r"\boxed{\frac{1}{2}}.": r"\frac{1}{2}",
    r"\boxed{\{1,2\}}": r"\{1,2\}",
    r"\boxed{\left\{1\right.}": r"\left\{1\right.",
}
UNITS = {"9 (apples)": "9", "14  (seats)": "14", "1/2": "1/2"}
UNITS |= {text: text for text in ("3:30 p.m.", "8 (cups); 3 (pots)")}
ROWS = [
    *((data.minerva, {"problem": "q", "solution": text}, ("q", box)) for text, box in BOXES.items()),
    *((data.asdiv, {"body": "b ", "question": "q", "answer": text}, ("b q", unit)) for text, unit in UNITS.items()),
    (data.olympiad, {"question": "q", "context": "C.", "final_answer": [r"$\$5$", "6"]}, ("C.\nq", r"\$5")),
    (data.level3to5, {"input": "<|im_start|>", "question": "q", "ground_truth_answer": 1}, ("q", "1")),
    (data.svamp, {"Body": "It has 3. ", "Question": "How many?", "Answer": 3.0}, ("It has 3. How many?", "3")),
]


@pytest.mark.parametrize("read, row, problem", ROWS)
def test_peculiar_row(read, row, problem):
    assert read(row) == problem


BAD_ROWS = [
    ("gsm8k_test.jsonl", {"question": "q", "answer": "so ####"}, "the answer is empty"),
    ("amc23.jsonl", {"problem": "q", "answer": None}, "'answer' is null (expected text or a number)"),
    ("olympiadbench.jsonl", {"final_answer": []}, "'final_answer' is not a list that starts with text"),
    ("math_level3to5_data.json", {"input": "<|im_start|>", "ground_truth_answer": "1"}, "the question holds chat "),
    ("minerva.jsonl", {"problem": "q", "solution": r"\boxed{3"}, r"the solution has no \boxed"),
    ("minerva.jsonl", {"problem": "q", "solution": "}"}, r"the solution has no \boxed"),
]


@pytest.mark.parametrize("file, row, message", BAD_ROWS)
def test_bad_published_row(file, row, message, publish, cache):
    in_list = file.endswith(".json")
    publish(file, json.dumps([row]).encode() if in_list else b"\n" + rows(row))
    sentence = refused(lambda: data._published(file))
    assert sentence.startswith(f"{cache / file}, {'row 1' if in_list else 'line 2'}: {message}")


GOOD = b'{"question": "q", "answer": "1"}\n'


@pytest.fixture
def own(tmp_path):
    return tmp_path / "own.jsonl"


def test_numbers_as_answers(own):
    """No answer has an exponent, a .0 or a -0, and text keeps its comma."""
    numbers = ["27.0", "27", "-0.0", "-1.50", "1e20", "1e-7", "0.1", "9" * 400, '" 1,000 "']
    answers = ["27", "27", "0", "-1.5", "1" + "0" * 20, "0.0000001", "0.1", "9" * 400, "1,000"]
    own.write_text("".join(f'{{"question": "{i}", "answer": {number}}}\n' for i, number in enumerate(numbers)))
    assert [p.answer for p in load(str(own))] == answers


BAD_LINES = [
    (GOOD + b'{"question": "r"}', ", line 2: 'answer' is missing (expected text or a number)"),
    (b'\n\n{"answer": 1}', ", line 3: 'question' is missing (expected text)"),
    (b'{"question": 5, "answer": 1}', ", line 1: 'question' is 5 (expected text)"),
    (b'{"question": "q", "answer": true}', ", line 1: 'answer' is true (expected text or a number)"),
    (b'{"question": "q", "answer": ["1"]}', """, line 1: 'answer' is ["1"] (expected text or a number)"""),
    (b'{"question": "q", "answer": 1e999}', ", line 1: 'answer' is Infinity (expected text or a number)"),
    (b'{"question": "q", "answer": NaN}', ", line 1: 'answer' is NaN (expected text or a number)"),
    (b'{"question": "q", "answer": "  "}', ", line 1: the answer is empty"),
    (b'"' + b"q" * 99 + b'"', f''', line 1: "{"q" * 59} is no object {{...}}'''),
    (GOOD + b'{"question": "r", ', ", line 2: not JSON: Expecting property name"),
    (GOOD + b"[" * 100_000, ", line 2: not JSON: maximum recursion depth exceeded"),
    (GOOD + b'{"question": "caf\xe9", "answer": 1}', ", line 2: not JSON: 'utf-8' codec can't decode byte 0xe9 in "),
    (b'{"question": "\\ud83d", "answer": "1"}', ", line 1: 'utf-8' codec can't encode character '\\ud83d' in "),
    (GOOD + b'{"question": " q ", "answer": 2}', ", line 2: the question of line 1 again, with another answer ("),
    (b" \n\r\n", " holds no problems: expected one a line"),
]


@pytest.mark.parametrize("content, message", BAD_LINES)
def test_bad_line(content, message, own):
    own.write_bytes(content)
    assert refused(lambda: load(str(own))).startswith(f"{own}{message}")


def test_own_file(own):
    lines = ['{"question": "What is a?\u2028 ", "answer": 3, "more": null}', ""]  # \u2028 ends no line of a file
    lines += 2 * ['{"question": "What is A?", "answer": "4"}'] + [r'{"question": "\ud83d\ude00", "answer": "5"}']
    own.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    expected = [Problem("What is a?", "3"), Problem("What is A?", "4"), Problem("\U0001f600", "5")]
    assert load(str(own)) == load(own) == expected


def test_own_file_missing_or_folder(own):
    assert f"{own} is missing or no file" in refused(lambda: load(str(own)), FileNotFoundError)
    own.mkdir()
    assert f"{own} is missing or no file" in refused(lambda: load(str(own)), FileNotFoundError)


def test_unknown_name(own):
    own.write_bytes(GOOD)
    expected = f"expected a path that ends in .jsonl, or one of {', '.join([*data.RIDDLES, *data.EASY, *data.SETS])}"
    hint = f"no data set is called 'gsm8k_test' (did you mean gsm8k-test?): {expected}"
    assert refused(lambda: load("gsm8k_test")) == refused(lambda: data.load_sets(f"{own},gsm8k_test")) == hint
    assert refused(lambda: load("zzzzz")) == f"no data set is called 'zzzzz': {expected}"


def test_several_sets(own, publish):
    own.write_bytes(GOOD)
    found = data.load_sets(f"{own}, riddles-test")
    assert list(found) == [str(own), "riddles-test"] and found[str(own)] == [Problem("q", "1")]
    assert load(f"{own},riddles-test") == [*found[str(own)], *found["riddles-test"]]
    for names in "", "amc23,", "amc23,amc23", "paper,amc23", "amc23, amc23":
        assert f"must be named each once, separated by commas, not '{names}'" in refused(lambda: data.load_sets(names))
    for i, name in enumerate(data.PAPER):
        row = {"problem": "q", "question": "q", "answer": i, "solution": rf"\boxed{{{i}}}", "final_answer": [f"${i}$"]}
        publish(f"{name}.jsonl", rows(row))
    benchmarks = ["aime24", "math500", "amc23", "minerva", "olympiadbench"]  # the paper's, in this order
    assert data.load_sets("paper") == {name: [Problem("q", str(i))] for i, name in enumerate(benchmarks)}


# ---- Cache and download

AMC = rows({"problem": "1+1?", "answer": 2.0})
AMC_PATH = "DualityRL/multi-attempt/44fed9c7dfd8bbf5162344921e100986151643df/eval/meval/data/amc23/test.jsonl"
TWO = [Problem("1+1?", "2")]


@pytest.fixture
def mirror(publish, monkeypatch, cache, tmp_path):
    """The file as it is on a mirror. The cache is empty."""
    publish("amc23.jsonl", AMC)
    path = tmp_path / "mirror" / AMC_PATH
    path.parent.mkdir(parents=True)
    (cache / "amc23.jsonl").rename(path)
    cache.rmdir()
    monkeypatch.setenv("MULTI_ATTEMPT_DATA_URL", f"{(tmp_path / 'mirror').as_uri()}/")
    return path


def test_downloads_once(mirror, monkeypatch, tmp_path):
    monkeypatch.setenv("MULTI_ATTEMPT_CACHE", "~/new/cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("amc23") == TWO and os.listdir(tmp_path / "new" / "cache") == ["amc23.jsonl"]
    mirror.unlink()
    assert load("amc23") == TWO


ALTERED = f" is not the published file (git blob id {git_blob_id(AMC[::-1])}, expected {git_blob_id(AMC)}): "
FAULTS = {  # what is replaced, and the sentence
    "altered": ({}, ALTERED),
    "cut": ({"urlopen": Mock(side_effect=IncompleteRead(b"", 5))}, "read (IncompleteRead(0 bytes read, 5 more exp"),
    "no server": ({"url": NOWHERE}, " cannot be read (<urlopen error [Errno 111] Connection refused>): get it "),
    "no address": ({"url": "mirror"}, f" cannot be read (unknown url type: 'mirror/{AMC_PATH}'): get it "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failed_download(fault, mirror, monkeypatch, cache):
    """Nothing is in the cache afterwards, and the next try starts from nothing and succeeds."""
    replaced, expected = FAULTS[fault]
    mirror.write_bytes(AMC[::-1])
    with monkeypatch.context() as patch:
        patch.setattr("data.download.urlopen", replaced.get("urlopen", urlopen))
        patch.setenv("MULTI_ATTEMPT_DATA_URL", replaced.get("url", os.environ["MULTI_ATTEMPT_DATA_URL"]))
        sentence = refused(lambda: load("amc23"), (ValueError, OSError))
    assert f"/{AMC_PATH} " in sentence and expected in sentence and str(cache / "amc23.jsonl") in sentence
    assert not cache.exists()
    mirror.write_bytes(AMC)
    assert load("amc23") == TWO


def test_interrupted_write(mirror, monkeypatch, cache):
    """Stopped between writing and naming the file: nothing stays, not even the temporary one."""
    monkeypatch.setattr(os, "replace", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load("amc23")
    assert os.listdir(cache) == []


def test_cache_that_cannot_be_written(mirror, cache):
    cache.write_text("a file, not a folder")
    expected = f"{cache / 'amc23.jsonl'} cannot be written (File exists): name another folder in MULTI_ATTEMPT_CACHE"
    assert refused(lambda: load("amc23"), OSError) == expected


def test_damaged_file_in_the_cache(publish, cache):
    """Also what a wrong file gets that was put there by hand. It is neither used nor deleted."""
    assert git_blob_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # git's well-known empty blob
    publish("amc23.jsonl", AMC)
    (cache / "amc23.jsonl").write_bytes(AMC[::-1])
    assert f"{cache / 'amc23.jsonl'}{ALTERED}" in refused(lambda: load("amc23"))
    assert (cache / "amc23.jsonl").read_bytes() == AMC[::-1]


def test_command_line(own):
    def command(*arguments):
        line = [sys.executable, "-m", "data", *map(str, arguments)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)

    own.write_bytes(GOOD + b'{"question": "r", "answer": 2.0}')
    assert command(own, "--limit", 1).stdout == f'{own}: 2 problems\n{{"question": "q", "answer": "1"}}\n'
    table = command().stdout
    assert all(re.search(rf"^{name} ", table, re.MULTILINE) for name in [*data.RIDDLES, *data.EASY, *data.SETS])
    bad = command("gsm8k")
    assert bad.returncode == 2 and bad.stderr.startswith("python -m data: no data set is called 'gsm8k' (did you mean")
    assert bad.stderr.count("\n") == 1 and not bad.stdout
