"""What a kill leaves: the journal of an evaluation, and files that are never half-written."""

import json
import re
import shutil

import pytest

from support import journal
from support.files import atomic_write, save_json
from support.journal import Journal, sources_version

A, B, C = ({"question": question, "gold": "1", "text": "long"} for question in ("a", "b\n\u2028", "c"))


def test_a_journal_is_what_was_appended(tmp_path):
    path = tmp_path / "j.jsonl"
    for chunk in ([A, B], [C], [A, {**A, "gold": "2"}]):
        Journal(path, {"k": 1}, left_out=("text",)).append(chunk)
    there = Journal(path, {"k": 1})
    assert there.count == 5 and [len(there.finished[each["question"], "1"]) for each in (A, B, C)] == [2, 1, 1]
    assert there.finished["a", "2"] == [{"question": "a", "gold": "2"}]  # by question and gold answer


def test_a_journal_cut_anywhere_loses_the_line_that_is_not_whole(tmp_path):
    path = tmp_path / "j.jsonl"
    for chunk in ([A], [B, C]):
        Journal(path, {"k": 1}).append(chunk)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        again = Journal(path, {"k": 1})
        assert again.count == sum(length >= end for end in ends[1:])
        again.append([A, B, C][again.count :])
        assert path.read_bytes() == whole


def test_what_is_missing():
    """Twice a is there, and once b."""
    journal, a, b, c = Journal(), ("a", "1"), ("b\n\u2028", "1"), ("c", "1")
    journal.append([A, B, A])
    assert journal.missing([a, b, a, c], range(1, 4)) == [(a, 3), (b, 2), (b, 3), (c, 1), (c, 2), (c, 3)]
    assert journal.missing([b, a], [1]) == [] and journal.records([b, a, b], 1) == [[B], [A], [B]]


def test_other_settings_are_refused_and_named(tmp_path):
    Journal(path := tmp_path / "j.jsonl", {"k": 1, "l": "a" * 99, "n": 0}).append([A])
    with pytest.raises(ValueError, match=re.escape("other settings (k, l, m): choose another --out, or delete it")):
        Journal(path, {"l": "b\nc", "m": 3, "n": 0})


@pytest.mark.parametrize("lines", [b'{"k": 1}\n{"quest', b'{"k": 1}\n[]', b'{"k": 1}\n{}', b"\xff"])
def test_a_damaged_journal_is_named(lines, tmp_path):
    (path := tmp_path / "j.jsonl").write_bytes(lines + b"\n[]\n")
    with pytest.raises(ValueError, match="j.jsonl is damaged, delete it to ask its questions again: "):
        Journal(path, {"k": 1})


def test_the_sources_version_knows_every_source(tmp_path, monkeypatch):
    versions = [sources_version([])]
    for stage in ("rollout.py", "reward.py"):
        shutil.copy(journal.ROOT / stage, tmp_path)
    shutil.copytree(journal.ROOT / "support" / "grader", tmp_path / "support" / "grader")
    monkeypatch.setattr(journal, "ROOT", tmp_path)
    assert [sources_version([])] == versions
    for path in tmp_path.rglob("*.py"):
        path.write_bytes(path.read_bytes() + b"#")
        versions.append(sources_version([]))
    versions.append(sources_version([test_what_is_missing]))  # a verifier of one's own may be in any file
    assert len(set(versions)) == len(versions) > 4


def test_files_are_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    (tmp_path / "a.json.part").write_text("left by a kill")
    save_json({"a": 1}, path)
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as part:
        part.mkdir()
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]
