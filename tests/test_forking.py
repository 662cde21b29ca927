"""docs/forking.md: every diff applies to the sources, is as short as the page says, trains for two steps, and changes
the run as its option does, if it has one. A fork of this process runs each, on a copy of the sources."""

import json
import re
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
from tiny_runs import exit_codes, metrics

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "forking.md").read_text(encoding="utf-8")
TINY = """--model base --data questions.jsonl --eval_data none --steps 2 --dialogues 8 --minibatches 2
    --lr 1e-2 --critic_lr 1e-2 --lr_warmup 0 --max_new_tokens 90 --max_attempt_tokens 9 --slots 8 --save_every 2
    --device cpu --dtype float32 """
SECTIONS = dict(re.findall(r"^### (.*?)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
OTHER_DATA = {"Another verifier": "decimals.jsonl", "A jsonl with other names": "other_names.jsonl"}


def said(title: str, what: str) -> list[str]:
    found = re.search(rf"^{what}: `(.*)`$", SECTIONS[title], re.MULTILINE)
    return shlex.split(found[1]) if found else []


def diff(title: str) -> list[str]:
    return re.search(r"^```diff\n(.*?)^```", SECTIONS[title], re.MULTILINE | re.DOTALL)[1].splitlines()


def patched(title: str, folder: Path) -> Path:
    """A copy of the sources with the section's diff applied. Every part of it must fit in exactly one place."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("data/*.*"), *ROOT.glob("support/**/*.py")]:
        (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.relative_to(ROOT))
    name, *lines = diff(title)
    path = folder / name.removeprefix("--- ")
    for part in "\n".join(lines).split("\n@@\n"):
        before, after = ("".join(f"{x[1:]}\n" for x in part.splitlines() if x[0] in kept) for kept in (" -", " +"))
        source = path.read_text()
        assert source.count(before) == 1, before
        path.write_text(source.replace(before, after))
    return folder


def run(sources: Path, words: list[str]) -> list[dict]:
    """The metrics of a tiny run with these sources."""

    def work():
        for name in list(sys.modules):
            if re.match(r"(train|evaluate|rollout|reward|ppo|data|support)\b", name):
                del sys.modules[name]
        sys.path.insert(0, str(sources))
        import train

        assert Path(train.__file__).parent == sources
        train.finish = sys.modules["support.run"].plot_training = lambda *_: None
        train.main([*TINY.split(), "--out", "run", *words])

    shutil.rmtree("run", ignore_errors=True)
    assert exit_codes(work) == [0]
    return metrics("run")


@cache
def plain(*words: str) -> list[dict]:
    return run(ROOT, [*words])


@pytest.mark.parametrize("title", SECTIONS)
def test_an_ablation_of_the_page(title, inputs, tmp_path):
    rows = [("?" * i, ("5", "5.0")[i % 2]) for i in range(1, 13)]
    for name, keys in (("decimals", ("question", "answer")), ("other_names", ("prompt", "target"))):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(dict(zip(keys, row))) + "\n" for row in rows))
    words = [*said(title, "Run with"), *(["--data", OTHER_DATA[title]] if title in OTHER_DATA else [])]
    found = run(patched(title, tmp_path / "sources"), words)
    assert [row["step"] for row in found] == [1, 2] and all(row["learned"] for row in found)
    if option := said(title, "Option"):
        assert found == plain(*words, *option)
    if title != "A jsonl with other names":  # which cannot be read without the change
        assert found != plain(*words)


def test_the_table_lists_the_sections_with_their_changed_lines():
    for title in SECTIONS:
        changed = [line for line in diff(title)[1:] if line[0] in "+-"]
        anchor = re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        (row,) = [line for line in PAGE.splitlines() if f"](#{anchor})" in line]
        assert int(row.split("|")[-2]) == len(changed) <= 10, title
    assert len(SECTIONS) == PAGE.count("](#") == 16
