"""The loaders on their real files, the download against a server on this machine, and rows that are wrong.

The real files are looked for in ../shared/data, beside the repository; without them those tests are skipped.
"""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import data
from data import Problem, load

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="no copies of the real files")
NOWHERE = "http://127.0.0.1:1"  # nothing listens there: a test that tries to download fails at once


@pytest.fixture(autouse=True)
def no_outside(monkeypatch, tmp_path):
    """No test sees the user's cache or reaches the network."""
    monkeypatch.setenv("MULTI_ATTEMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MULTI_ATTEMPT_DATA_URL", NOWHERE)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def real_cache(tmp_path):
    shutil.copytree(REAL, tmp_path / "real", copy_function=shutil.copyfile)
    return tmp_path / "real"


def stand_in(monkeypatch, file, content: bytes):
    """Give a file of the table another content: only its blob id has to follow."""
    monkeypatch.setitem(data.SOURCES, file, data.SOURCES[file]._replace(blob=data._blob(content)))
    return content


def rows(*objects) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in objects).encode()


# ---- The real files

# Counts, and the first answer: gsm8k after ####, floats without .0, the last box of the solution.
PUBLISHED = {
    "gsm8k-train": (7091, "72"),
    "gsm8k-validation": (382, "34"),
    "gsm8k-test": (1319, "18"),
    "mawps-train": (1314, "43"),
    "mawps-validation": (199, "8"),
    "mawps-test": (354, "26"),
    "mawps-easy-train": (764, "43"),
    "mawps-easy-validation": (103, "15"),
    "mawps-easy-test": (219, "26"),
    "math500": (500, r"\left( 3, \frac{\pi}{2} \right)"),
    "aime24": (30, "204"),
    "amc23": (40, "27"),
}


@real
@pytest.mark.parametrize("name", PUBLISHED)
def test_real_file(name, real_cache):
    problems = load(name, cache=real_cache)
    assert (len(problems), problems[0].answer) == PUBLISHED[name]
    assert all(p.question == p.question.strip() and p.answer == p.answer.strip() != "" for p in problems)
    assert load(name, cache=str(real_cache)) == problems  # the same order, with a path as text too


@real
def test_math500_boxes_are_the_published_answers(real_cache):
    published = [json.loads(line)["answer"] for line in (REAL / "math500.jsonl").read_bytes().splitlines()]
    assert [p.answer for p in load("math500", real_cache)] == published


@real
def test_answers_with_commas_zeros_and_decimals(real_cache):
    assert "1,450,000" in {p.answer for p in load("gsm8k-test", real_cache)}
    assert "025" in {p.answer for p in load("aime24", real_cache)}  # as published; equal to 25 is the grader's matter
    mawps = {p.answer for name in ("train", "validation", "test") for p in load(f"mawps-{name}", real_cache)}
    assert {"2400000", "0.6666666667", "0.08"} <= mawps and not any(a.endswith(".0") or "e" in a for a in mawps)
    assert [p.answer for p in load("amc23", real_cache)][15] == "-1"


@real
def test_minerva_and_olympiadbench_rows():
    """The shared copies are the first 20 rows only, which are no published file: the row readers are tested on them."""

    def answers(copy, file):
        path = REAL / copy
        return [p.answer for _, p in data._rows(path, path.read_bytes(), data.SOURCES[file].read)]

    minerva = answers("minerva_math_first20.jsonl", "minerva_math.jsonl")
    assert minerva[:6] == ["1.6", "4.5e33", "41.8", "20.39", "0.006", "np.arcsin(10/13)"] and len(minerva) == 20
    olympiad = answers("olympiadbench_first20.jsonl", "olympiadbench.jsonl")
    assert olympiad[:3] == ["2", r"\frac{1}{2 n+2}", "2^{1009}"] and len(olympiad) == 20
    assert {"69,84", "(1,8,19), (2,7,13), (4,5,7)", "f(n)=n, g(n)=1"} <= set(olympiad)
    assert not any("$" in answer for answer in olympiad)


# ---- Splits


def no_two_share(splits):
    keys = [data.question_key(p.question) for split in splits for p in split]
    assert all(splits) and len(set(keys)) == len(keys)


@real
def test_real_splits_share_no_question_and_lose_none(real_cache):
    gsm8k = [load(f"gsm8k-{split}", real_cache) for split in ("train", "validation", "test")]
    no_two_share(gsm8k)
    assert sum(map(len, gsm8k)) == 7473 + 1319
    mawps = [load(f"mawps-{split}", real_cache) for split in ("train", "validation", "test")]
    no_two_share(mawps)
    assert sum(map(len, mawps)) == 1868 - 1  # of 2065 rows; the copies of one question disagree about its answer
    stories = [{re.sub(r"[\W\d_]", "", p.question).casefold() for p in split} for split in mawps]
    assert not stories[0] & stories[1] and not stories[0] & stories[2] and not stories[1] & stories[2]


def test_riddle_splits_share_no_question():
    """Within the training set a riddle does stand several times, with hidden numbers of its own."""
    no_two_share([set({p.question: p for p in load(name)}.values()) for name in data.RIDDLES])


def test_training_leaves_out_test_questions_and_copies(monkeypatch, tmp_path):
    train = [{"input": f"What is ${i}+{'x' * i}$?", "target": "-", "ground_truth_answer": str(i)} for i in range(200)]
    copy = train[5] | {"input": " what is  $5+XXXXX$?"}
    disputed = train[6] | {"ground_truth_answer": "7"}
    tests = [{"problem": "WHAT IS $7 + xxxxxxx$ ?", "solution": r"\boxed{7}"}]
    content = stand_in(monkeypatch, "math_level3to5_data.json", json.dumps([*train, copy, disputed]).encode())
    (tmp_path / "math_level3to5_data.json").write_bytes(content)
    with pytest.raises(FileNotFoundError, match="math500.jsonl is missing"):
        load("math-train", tmp_path)  # never trains on what may be test questions
    (tmp_path / "math500.jsonl").write_bytes(stand_in(monkeypatch, "math500.jsonl", rows(*tests)))
    splits = [load(name, tmp_path) for name in ("math-train", "math-validation", "math500")]
    no_two_share(splits)
    assert splits[0][0] == Problem("What is $0+$?", "0") and len(splits[0]) > len(splits[1])
    answers = sorted((p.answer for p in splits[0] + splits[1]), key=int)
    assert answers == [str(i) for i in range(200) if i not in (6, 7)]


def test_question_alone_decides_the_split(monkeypatch, tmp_path):
    """Other rows, or another order, send no question from validation to training."""
    row = [{"question": f"{'q' * i} {i}?", "answer": f"#### {i}"} for i in range(100)]
    (tmp_path / "gsm8k_test.jsonl").write_bytes(stand_in(monkeypatch, "gsm8k_test.jsonl", rows(row[0])))
    (tmp_path / "gsm8k_train.jsonl").write_bytes(stand_in(monkeypatch, "gsm8k_train.jsonl", rows(*row)))
    before = load("gsm8k-validation", tmp_path)
    (tmp_path / "gsm8k_train.jsonl").write_bytes(stand_in(monkeypatch, "gsm8k_train.jsonl", rows(*row[:0:-2])))
    after = load("gsm8k-validation", tmp_path)
    assert before and set(after) == {p for p in before if int(p.answer) % 2}


def test_cut_shares_are_disjoint_and_complete():
    for family in ("gsm8k", "math", "mawps"):
        parts = [s for name, s in data.SETS.items() if name.startswith(family + "-") and len(s[1]) < 100]
        assert len({file for file, _, _ in parts}) == 1
        assert sorted(bucket for _, buckets, _ in parts for bucket in buckets) == list(range(100))
        test_file = {"gsm8k": "gsm8k_test.jsonl", "math": "math500.jsonl", "mawps": None}[family]
        assert {left_out for _, _, left_out in parts} == {test_file}


# ---- Row readers


@pytest.mark.parametrize(
    "text, box",
    [
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed {3}", "3"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{\boxed{3}}", "3"),
        ("no box", None),
        (r"\boxed 3", None),
        (r"\boxed{3", None),
    ],
)
def test_last_box(text, box):
    assert data._last_box(text) == box


@pytest.mark.parametrize(
    "number, text",
    [
        ("27.0", "27"),
        ("27", "27"),
        ("-0.0", "0"),
        ("-1.50", "-1.5"),
        ("1e20", "100000000000000000000"),
        ("1e-7", "0.0000001"),
        ("0.1", "0.1"),
        ("9" * 400, "9" * 400),
        ('" 1,000 "', "1,000"),
    ],
)
def test_numbers_as_answers(number, text, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(f'{{"question": "q", "answer": {number}}}')
    assert load(str(path)) == [Problem("q", text)]


@pytest.mark.parametrize(
    "file, row, message",
    [
        (
            "gsm8k_test.jsonl",
            {"question": "q", "answer": "18"},
            "'answer' has no '####' (expected the final answer after it)",
        ),
        ("gsm8k_test.jsonl", {"question": "q", "answer": "so ####"}, "the answer is empty"),
        (
            "math500.jsonl",
            {"problem": "q", "solution": r"\boxed{3"},
            r"'solution' has no closed \boxed{...} (expected the final answer in it)",
        ),
        ("amc23.jsonl", {"problem": "q", "answer": None}, "'answer' is null (expected text or a number)"),
        ("mawps.jsonl", {"input": ["q"], "target": 1.0}, "'input' is a list (expected text)"),
        (
            "olympiadbench.jsonl",
            {"question": "q", "final_answer": []},
            "'final_answer' is not a list that starts with text",
        ),
        (
            "math_level3to5_data.json",
            {"input": "<|im_start|>system", "ground_truth_answer": "1"},
            "the question holds chat markup (expected the bare question)",
        ),
        (
            "math_level3to5_data.json",
            {"question": "q", "answer": "1"},
            "'ground_truth_answer' is missing (expected text or a number)",
        ),
    ],
)
def test_bad_published_row(file, row, message):
    content = json.dumps([row]).encode() if file.endswith(".json") else b"\n" + rows(row)
    with pytest.raises(ValueError) as error:
        data._rows(Path(file), content, data.SOURCES[file].read)
    assert str(error.value) == f"{file}, {'row 1' if file.endswith('.json') else 'line 2'}: {message}"


def test_peculiar_rows():
    read = {file: source.read for file, source in data.SOURCES.items()}
    row = {"question": "Why?", "context": "Long ago.", "final_answer": [r"$\$5$", "6"]}
    assert read["olympiadbench.jsonl"](row) == ("Long ago.\nWhy?", r"\$5")
    row = {"input": "<|im_start|>...", "question": "bare", "ground_truth_answer": "1", "target": "2"}
    assert read["math_level3to5_data.json"](row) == ("bare", "1")


# ---- A file of yours

GOOD = b'{"question": "q", "answer": "1"}\n'


@pytest.mark.parametrize(
    "content, message",
    [
        (GOOD + b'{"question": "r"}', ", line 2: 'answer' is missing (expected text or a number)"),
        (b'\n\n{"answer": 1}', ", line 3: 'question' is missing (expected text)"),
        (b'{"question": 5, "answer": 1}', ", line 1: 'question' is a number (expected text)"),
        (b'{"question": "q", "answer": true}', ", line 1: 'answer' is true or false (expected text or a number)"),
        (b'{"question": "q", "answer": ["1"]}', ", line 1: 'answer' is a list (expected text or a number)"),
        (b'{"question": "q", "answer": {}}', ", line 1: 'answer' is an object (expected text or a number)"),
        (b'{"question": "q", "answer": "  "}', ", line 1: the answer is empty"),
        (b'{"question": "", "answer": "1"}', ", line 1: the question is empty"),
        (b'{"question": "q", "answer": 1e999}', ", line 1: 'answer' is too large a number"),
        (
            b'{"question": "q", "answer": NaN}',
            ", line 1: not JSON: NaN is no number in JSON (expected one object a line)",
        ),
        (
            b'{"question": "\\ud83d", "answer": "1"}',
            ", line 1: the question holds half a character (a lone \\u escape from d800 to dfff)",
        ),
        (b'["q", "1"]', ", line 1: a list (expected an object, {...})"),
        (b'"q"', ", line 1: text (expected an object, {...})"),
        (
            GOOD + b'{"question": "r", ',
            ", line 2: not JSON: Expecting property name enclosed in double quotes: line 1 column 19 (char 18) "
            "(expected one object a line)",
        ),
        (GOOD + b'{"question": "caf\xe9", "answer": 1}', ", line 2: not UTF-8 (byte 18 of the line)"),
        (
            GOOD + GOOD + b'{"question": " q ", "answer": 2}',
            ", line 3: the question of line 1 again, with another answer ('2', there '1')",
        ),
        (b"", " holds no problems: expected one a line"),
        (b" \n\r\n", " holds no problems: expected one a line"),
    ],
)
def test_bad_line(content, message, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load(str(path))
    assert str(error.value) == str(path) + message


def test_own_file(tmp_path):
    path = tmp_path / "own.jsonl"
    lines = [
        '{"question": "What is a?\u2028 ", "answer": 3, "more": null}',
        "",  # \u2028 ends no line of a file
        '{"question": "What is A?", "answer": "4"}',
        '{"question": "What is A?", "answer": "4"}',
        r'{"question": "\ud83d\ude00", "answer": "5"}',
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    expected = [Problem("What is a?", "3"), Problem("What is A?", "4"), Problem("\U0001f600", "5")]
    assert load(str(path)) == load(path) == expected


def test_own_file_missing_or_folder(tmp_path):
    expected = "(expected one object with 'question' and 'answer' a line)"
    with pytest.raises(FileNotFoundError) as error:
        load(str(tmp_path / "no.jsonl"))
    assert str(error.value) == f"{tmp_path / 'no.jsonl'} is missing {expected}"
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        load(str(tmp_path / "folder.jsonl"))
    assert str(error.value) == f"{tmp_path / 'folder.jsonl'} is not a file {expected}"


def test_unknown_name():
    with pytest.raises(ValueError) as error:
        load("gsm8k_test")
    assert str(error.value) == (
        "no data set is called 'gsm8k_test' (did you mean gsm8k-test?): expected a path that "
        f"ends in .jsonl, or one of {', '.join([*data.RIDDLES, *data.EASY, *data.SETS])}"
    )
    with pytest.raises(ValueError, match="no data set is called 'zzzzz': expected"):
        load("zzzzz")


# ---- Several sets


def test_several_sets(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_bytes(GOOD)
    found = data.load_sets(f"{paths[0]}, {paths[1]}")
    assert found == {str(path): [Problem("q", "1")] for path in paths} and list(found) == list(map(str, paths))


def test_paper_stands_for_its_five_benchmarks(monkeypatch, tmp_path):
    for i, name in enumerate(data.PAPER):
        file = data.SETS[name][0]
        row = {"problem": "q", "question": "q", "answer": i, "solution": rf"\boxed{{{i}}}", "final_answer": [f"${i}$"]}
        (tmp_path / file).write_bytes(stand_in(monkeypatch, file, rows(row)))
    sets = data.load_sets("paper", tmp_path)
    assert list(sets) == ["aime24", "math500", "amc23", "minerva", "olympiadbench"]
    assert [problems for problems in sets.values()] == [[Problem("q", str(i))] for i in range(5)]


@pytest.mark.parametrize("names", ["", "amc23,", "amc23,amc23", "paper,amc23", "amc23, amc23"])
def test_sets_named_not_at_all_or_twice(names):
    with pytest.raises(ValueError) as error:
        data.load_sets(names)
    assert str(error.value) == f"data sets must be named each once, separated by commas, not '{names}'"


def test_unknown_name_among_several_sets(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"^no data set is called 'amc24' \(did you mean amc23\?\): expected a path"):
        data.load_sets(f"{tmp_path / 'a.jsonl'},amc24")


# ---- Cache and download

AMC = rows({"problem": "1+1?", "answer": 2.0})
AMC_PATH = "DualityRL/multi-attempt/44fed9c7dfd8bbf5162344921e100986151643df/eval/meval/data/amc23/test.jsonl"


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/www; `.requests` are the paths asked for, and `.cut` ends each body after so many bytes."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            httpd.requests.append(self.path)
            super().do_GET()

        def copyfile(self, source, output):
            output.write(source.read()[: httpd.cut])

    (tmp_path / "www").mkdir()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path / "www"))
    httpd.requests, httpd.cut, httpd.url = [], None, f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.www = tmp_path / "www"
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def publish(server, content):
    path = server.www / AMC_PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_downloads_once(server, monkeypatch, tmp_path):
    publish(server, stand_in(monkeypatch, "amc23.jsonl", AMC))
    cache = tmp_path / "new" / "cache"
    assert load("amc23", cache, server.url + "/") == [Problem("1+1?", "2")]
    assert load("amc23", cache, server.url) == [Problem("1+1?", "2")]
    assert server.requests == ["/" + AMC_PATH] and os.listdir(cache) == ["amc23.jsonl"]
    assert (cache / "amc23.jsonl").read_bytes() == AMC


def test_environment_names_cache_and_server(server, monkeypatch, tmp_path):
    publish(server, stand_in(monkeypatch, "amc23.jsonl", AMC))
    monkeypatch.setenv("MULTI_ATTEMPT_DATA_URL", server.url)
    monkeypatch.setenv("MULTI_ATTEMPT_CACHE", "~/here")
    monkeypatch.setenv("HOME", str(tmp_path))
    load("amc23")
    assert os.listdir(tmp_path / "here") == ["amc23.jsonl"]


def refused(error_type, cache, url) -> str:
    """The one sentence of a failed load, after which the cache must hold nothing at all."""
    with pytest.raises(error_type) as error:
        load("amc23", cache, url)
    assert not cache.exists() or not os.listdir(cache)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_altered_download(server, monkeypatch, tmp_path):
    stand_in(monkeypatch, "amc23.jsonl", AMC)
    publish(server, AMC + b" ")
    assert refused(ValueError, tmp_path / "cache", server.url) == (
        f"{server.url}/{AMC_PATH} gave another file than the published one (git blob id {data._blob(AMC + b' ')}, "
        f"expected {data._blob(AMC)}): get that by other means and put it at {tmp_path / 'cache' / 'amc23.jsonl'}"
    )


@pytest.mark.parametrize("cut", [0, 10])
def test_interrupted_download(server, monkeypatch, tmp_path, cut):
    publish(server, stand_in(monkeypatch, "amc23.jsonl", AMC))
    server.cut = cut
    message = refused(FileNotFoundError, tmp_path / "cache", server.url)
    assert "could not be downloaded (" in message and f"{tmp_path / 'cache' / 'amc23.jsonl'} is missing" in message
    server.cut = None  # the next try starts from nothing and succeeds
    assert load("amc23", tmp_path / "cache", server.url) == [Problem("1+1?", "2")]


def test_not_on_the_server(server, tmp_path):
    assert refused(FileNotFoundError, tmp_path / "cache", server.url) == (
        f"{tmp_path / 'cache' / 'amc23.jsonl'} is missing and {server.url}/{AMC_PATH} could not be downloaded "
        "(HTTP Error 404: File not found): get it by other means and put it there"
    )


def test_no_network(tmp_path):
    message = refused(FileNotFoundError, tmp_path / "cache", None)
    assert message == refused(FileNotFoundError, tmp_path / "cache", NOWHERE + "/")
    assert message.startswith(f"{tmp_path / 'cache' / 'amc23.jsonl'} is missing and {NOWHERE}/{AMC_PATH} could not be ")
    assert "refused" in message and message.endswith("): get it by other means and put it there")


def test_base_url_that_is_none(tmp_path):
    assert "could not be downloaded (unknown url type: 'mirror/" in refused(FileNotFoundError, tmp_path / "c", "mirror")


def test_interrupted_write(server, monkeypatch, tmp_path):
    """Stopped between writing and naming the file: nothing stays, not even the temporary one."""
    publish(server, stand_in(monkeypatch, "amc23.jsonl", AMC))

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        load("amc23", tmp_path / "cache", server.url)
    assert os.listdir(tmp_path / "cache") == []


def test_cache_that_cannot_be_written(server, monkeypatch, tmp_path):
    publish(server, stand_in(monkeypatch, "amc23.jsonl", AMC))
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(OSError) as error:
        load("amc23", tmp_path / "cache", server.url)
    assert str(error.value) == (
        f"{tmp_path / 'cache' / 'amc23.jsonl'} cannot be written (File exists): name another cache folder"
    )


def test_damaged_file_in_the_cache(monkeypatch, tmp_path):
    """Also what a hand-placed wrong file gets. It is neither used nor deleted."""
    stand_in(monkeypatch, "amc23.jsonl", AMC)
    path = tmp_path / "amc23.jsonl"
    path.write_bytes(AMC[:-1])
    with pytest.raises(ValueError) as error:
        load("amc23", tmp_path)
    assert str(error.value) == (
        f"{path} is damaged or another file (git blob id {data._blob(AMC[:-1])}, expected "
        f"{data._blob(AMC)}): delete it, and it is downloaded again"
    )
    assert path.read_bytes() == AMC[:-1]


def test_blob_id_is_gits():
    assert data._blob(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # git's well-known empty blob


# ---- The command line


def command(*arguments):
    line = [sys.executable, "-m", "data", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def test_command_line(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(GOOD + b'{"question": "r", "answer": 2.0}')
    assert command(path, "--limit", 1).stdout == f'{path}: 2 problems\n{{"question": "q", "answer": "1"}}\n'
    table = command().stdout
    assert all(re.search(rf"^{name} ", table, re.MULTILINE) for name in [*data.RIDDLES, *data.EASY, *data.SETS])
    bad = command("gsm8k")
    assert bad.returncode == 2 and bad.stderr.startswith("python -m data: no data set is called 'gsm8k' (did you mean")
    assert bad.stderr.count("\n") == 1 and not bad.stdout
