"""The repository: which file may import which, how long a stage may be, and that the pages name only what exists.

In README.md and docs/*.md these are checked:
    [text](path)                       the file or folder, seen from the page
    [`name`](ppo.py), `ppo.py:name`    and that it defines this function, class, method (Class.name) or constant
    `data/chat.py`, `bench/results/`   in backticks: a path into one of our folders, or any .py or .md file
    --option                           anywhere: an option of train.py, evaluate.py or another command of ours
    make target, python file.py, python -m module      in backticks or code blocks, also after &&
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
# ours; a fork may need more
LINES = {"train.py": 330, "evaluate.py": 260, "rollout.py": 540, "reward.py": 170, "ppo.py": 400}
FORBIDDEN = {
    "support/**/*.py": "train evaluate rollout reward ppo bench data",
    "data/**/*.py": "train evaluate rollout reward ppo bench",
    "rollout.py": "train evaluate reward ppo bench",
    "reward.py": "train evaluate rollout ppo bench",
    "ppo.py": "train evaluate rollout reward bench",
    "evaluate.py": "train bench",
    "train.py": "bench",
}
FOREIGN_OPTIONS = {"nproc-per-node", "shutdown-timeout"}  # of torchrun


@pytest.mark.parametrize("pattern, forbidden", FORBIDDEN.items())
def test_imports_run_one_way(pattern, forbidden):
    for path in ROOT.glob(pattern):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        assert not {name.split(".")[0] for name in names} & {*forbidden.split()}, path


@pytest.mark.parametrize("name, limit", LINES.items())
def test_a_stage_is_short(name, limit):
    source = (ROOT / name).read_text()
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= 60] == []
    assert len(source.splitlines()) <= limit


def test_make_train_refuses_what_it_would_ignore():
    made = subprocess.run(["make", "-n", "train", "MODEL=mine"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 2 and 'as ARGS="--model FOLDER --data FILE"' in made.stderr


def defines(path: Path, name: str) -> bool:
    name = name.split(".")[-1]
    return path.exists() and bool(re.search(rf"^ *((def|class) {name}\b|{name}\b.*=)", path.read_text(), re.MULTILINE))


def named(page: Path) -> Iterator[tuple[str, bool]]:
    """What the page names, and whether it exists."""
    text, makefile = page.read_text(encoding="utf-8"), (ROOT / "Makefile").read_text()
    for words, target in re.findall(r"\[([^\]]*)\]\(([^)#\s]+)", text):
        if ":" not in target:
            yield target, (page.parent / target).exists()
            name = re.fullmatch(r"`([\w.]+)(\(\))?`", words)
            if target.endswith(".py") and name and not name[1].endswith(".py"):
                yield f"{name[1]} in {target}", defines(page.parent / target, name[1])

    code = re.findall(r"^```.*?^```|`[^`\n]+`", text, re.DOTALL | re.MULTILINE)
    for span in (span.strip("`") for span in code):
        if name := re.fullmatch(r"([\w/]+\.py):([\w.]+)", span):
            yield span, defines(ROOT / name[1], name[2])
        elif re.fullmatch(r"(data|support|bench|docs|tests)/\S*|[\w/]+\.(py|md)", span):
            yield span, (ROOT / span).exists()
        for command in (part.strip(" $\n") for part in re.split(r"\n|&&", span)):
            if target := re.match(r"make ([a-z][a-z-]*)", command):
                yield target[0], bool(re.search(rf"^{target[1]}:", makefile, re.MULTILINE))
            if module := re.match(r"python3? -m ([\w.]+)", command):
                yield module[0], find_spec(module[1]) is not None
            elif script := re.match(r"(?:python3?|torchrun) [^#]*?([\w/]+\.py)", command):
                yield script[0], (ROOT / script[1]).exists()

    sources = [path for folder in (".", "data", "bench", "support") for path in (ROOT / folder).glob("*.py")]
    added = r'^    (\w+): .* = \w+\(|add_argument\("--(\w+)"'  # a field of a dataclass of options; a parser's own
    found = re.findall(added, "".join(path.read_text() for path in sources), re.MULTILINE)
    options = {"help", *(name for pair in found for name in pair)}
    for option in re.findall(r"(?<![\w!-])--([a-z][\w-]*)", text):
        yield f"--{option}", option in FOREIGN_OPTIONS or option.replace("-", "_") in options


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_what_a_page_names_exists(page):
    assert [what for what, exists in named(page) if not exists] == []
