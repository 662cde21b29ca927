"""What a kill leaves: the journal of an evaluation, and files that are never half-written."""

import json
import os
import shutil

import pytest

from support import journal
from support.files import atomic_write, output_folder, save_json
from support.journal import Journal, fingerprint, grader_version

A, B, C = ({"question": question, "gold": "1", "text": "long"} for question in ("a", "b\n\u2028", "c"))


def test_a_journal_is_what_was_appended(tmp_path):
    path = tmp_path / "j.jsonl"
    for chunk in ([A, B], [C], [A, {**A, "gold": "2"}]):
        Journal(path, {"k": 1}, left_out=("text",)).append(chunk)
    there = Journal(path, {"k": 1})
    assert there.count == 5 and [len(there.finished[each["question"], "1"]) for each in (A, B, C)] == [2, 1, 1]
    assert there.finished["a", "2"] == [{"question": "a", "gold": "2"}]
    assert [json.loads(line) for line in path.read_bytes().splitlines()][0] == {"k": 1}
    in_memory = Journal()
    in_memory.append([A, B])
    assert in_memory.count == 2 and in_memory.finished["a", "1"] == [A]


def test_a_journal_cut_anywhere_loses_the_lines_that_are_not_whole(tmp_path):
    path = tmp_path / "j.jsonl"
    for chunk in ([A], [B, C]):
        Journal(path, {"k": 1}).append(chunk)
    whole = path.read_bytes()
    settings, first, second = whole.splitlines(keepends=True)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        again = Journal(path, {"k": 1})
        assert again.count == (length >= len(settings + first))
        for chunk in [[A], [B, C]][again.count :]:
            again.append(chunk)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "there, here, difference",
    [
        ({"k": 1}, {"k": 2}, "k (1 there, 2 here)"),
        ({"k": 1, "l": "x"}, {"l": "y", "m": 3}, "k (1 there, None here), l (x there, y here), m (None there, 3 here)"),
        ({"k": "a" * 50 + "b"}, {"k": "a" * 50 + "c"}, f"k (...{'a' * 20}b there, ...{'a' * 20}c here)"),
        ({"k": "a" * 99}, {"k": ""}, f"k ({'a' * 60} there,  here)"),
    ],
)
def test_other_settings_are_refused_and_named(there, here, difference, tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path, there).append([A])
    with pytest.raises(ValueError) as error:
        Journal(path, here)
    why = f"{path} holds an evaluation with other settings, {difference}"
    assert str(error.value) == f"{why}: choose another --out, or delete it"


@pytest.mark.parametrize(
    "content", [b'{"k": 1}\n[{"quest\n[]\n', b'{"k": 1}\n[[]]\n', b'{"k": 1}\n[{}]\n', b"[]\n", b"\xff\n"]
)
def test_a_damaged_journal_is_named(content, tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        Journal(path, {"k": 1})
    assert str(error.value).startswith(f"{path} is damaged (")
    assert str(error.value).endswith("): delete it, and its questions are asked again")


def test_the_grader_version_knows_every_source(tmp_path, monkeypatch):
    before = grader_version()
    shutil.copy(journal.ROOT / "reward.py", tmp_path)
    shutil.copytree(journal.ROOT / "support" / "grader", tmp_path / "support" / "grader")
    monkeypatch.setattr(journal, "ROOT", tmp_path)
    assert grader_version() == before
    sources = [tmp_path / "reward.py", *(tmp_path / "support" / "grader").glob("*.py")]
    versions = {before}
    for path in sources:
        path.write_bytes(path.read_bytes() + b"#")
        versions.add(grader_version())
    assert len(versions) == len(sources) + 1 > 2


def test_the_fingerprint_knows_weights_configuration_vocabulary_and_end_tokens(tokenizer, model):
    def taken(vocabulary=tokenizer.get_vocab(), end_tokens=frozenset({1, 2})):
        return fingerprint(model, vocabulary, end_tokens)

    taken_before = taken()
    assert taken() == taken_before and taken({"a": 0}) != taken_before != taken(end_tokens={1})
    model.lm_head.bias.data[0] += 1
    changed = taken()
    model.lm_head.bias.data[0] -= 1
    assert changed != taken_before == taken()


def test_files_are_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    save_json({"a": 1}, path)
    with pytest.raises(TypeError):
        save_json({"a": object()}, path)
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as part:
        part.mkdir()
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]
    (tmp_path / "a.json.part").write_text("left by a kill")
    save_json({"a": 2}, path)
    assert json.loads(path.read_text()) == {"a": 2} and list(tmp_path.iterdir()) == [path]


def test_the_output_folder_is_made_and_left_empty(tmp_path):
    assert output_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b" and os.listdir(tmp_path / "a" / "b") == []
