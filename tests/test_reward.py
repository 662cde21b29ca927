"""The reward rule, the box, the command line. tests/test_grader.py has what "equal" means."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward import extract_boxed, reward

ROOT = Path(__file__).resolve().parents[1]

# -------------------- The rule
# attempts: an answer, "*" after the correct one, "-" without a box; options; the rewards
RULE = """
5*     |                                         | 1
6      |                                         | -0.5
-      |                                         | -1
6 7 5* |                                         | 0 0 1
6 - 5* | attempt_discount=0.5                    | 0 0 0.25
5*     | attempt_discount=0.5                    | 1
- 6    | attempt_discount=0.5                    | 0 -0.5
6 - -  | unboxed_reward=-0.25                    | 0 0 -0.5
- -    | unboxed_reward=-0.25                    | 0 -0.25
6 5*   | wrong_reward=-0.25                      | -0.25 1
6 7    | wrong_reward=-0.25                      | -0.25 -0.75
- -    | wrong_reward=-0.25                      | -0.25 -1.25
6 6 5* | repeat_penalty=0.5                      | 0 -0.5 1
6 7 6  | repeat_penalty=0.5                      | 0 0 -1
- - 6  | repeat_penalty=0.5                      | 0 0 -0.5
6 6 6  | repeat_penalty=0.5 wrong_reward=-0.125  | -0.125 -0.625 -1.125
6 6 5* | repeat_penalty=0.5 attempt_discount=0.5 | 0 -0.5 0.25
"""


@pytest.mark.parametrize("row", RULE.strip().splitlines())
def test_reward_rule(row):
    attempts, options, rewards = (part.split() for part in row.split("|"))
    attempts = [SimpleNamespace(answer=None if a == "-" else a.strip("*"), correct="*" in a) for a in attempts]
    options = {key: float(value) for key, value in (option.split("=") for option in options)}
    assert reward(attempts, "5", **options) == [float(number) for number in rewards]


# -------------------- The box
# text -> answer; without an arrow there is no box
BOXES = r"""
so \boxed{42}. -> 42
\boxed{\frac{1}{2}} -> \frac{1}{2}
\boxed {7} -> 7
\boxed␤{7} -> 7
\boxed{1} and \boxed{2} -> 1
\boxed{\boxed{3}} -> 3
\boxed{\boxed{4} 5} -> 4
put it within \boxed{} : \boxed{5} -> 5
\boxed{ {1 } \boxed{2} -> 2
\boxed{ } \boxed{\text{ }} -> \text{ }
\boxed{\boxed{}} \boxed{3} -> \boxed{}
\boxed{\{1,2\}} -> \{1,2\}
\boxed{\}} -> \}
\boxed{\{} -> \{
\boxed{\\} -> \\
\\\boxed{5} -> 5
{ \boxed{5} -> 5
} \boxed{5} -> 5
\boxed{a} } -> a
\boxed{\text{a {b} c}} -> \text{a {b} c}
\boxed\boxed{5} -> 5

5
\boxed{5
\boxed
\boxed 5
boxed{5}
\boxedx{5}
\\boxed{5}
\fbox{5}
\boxed{}
\boxed{ }
"""


@pytest.mark.parametrize("row", BOXES.strip().splitlines())
def test_extract_boxed(row):
    text, arrow, answer = row.replace("␤", "\n").partition(" ->")
    assert extract_boxed(text) == (answer.strip() if arrow else None)


def slow_extract(text):
    """The definition, written as a scan of single characters."""
    stack, i = [], 0
    while i < len(text):
        box = re.match(r"\\boxed\s*\{", text[i:])
        if box:
            stack.append(i + box.end())
        elif text[i] == "{":
            stack.append(None)
        elif text[i] == "}" and stack and (start := stack.pop()) is not None:
            if text[start:i].strip():
                return text[start:i].strip()
        i += box.end() if box else 1 + (text[i] == "\\")
    return None


PIECES = ["\\boxed", "\\boxed{", "{", "}", "\\", "\\{", "\\}", "\\\\", " ", "\n", "x", "1", "é", "\x00", "boxed"]


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_extraction_is_the_definition_and_stable_over_prefixes(text):
    answers = [extract_boxed(text[:k]) for k in range(len(text) + 1)]
    assert answers[-1] == slow_extract(text)
    given_at = next((k for k, a in enumerate(answers) if a is not None), len(answers))
    assert len(set(answers[given_at:])) <= 1, "a longer text changed the answer"


def test_extraction_is_linear():
    assert extract_boxed("\\boxed{" * 200_000) is None
    assert extract_boxed("\\boxed " * 200_000 + "{1}") == "1"
    assert extract_boxed("{" * 500_000 + "\\boxed{1}") == "1"


# -------------------- The source, the command line
def test_the_source_evaluates_nothing_and_imports_little():
    for path in [ROOT / "reward.py", *(ROOT / "support" / "grader").glob("*.py")]:
        code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL)
        forbidden = r"\b(eval|exec|sympify|parse_expr|parse_latex|pickle|SIGALRM|setitimer|threading|os\.fork)\b"
        assert not re.search(forbidden, code)
    code = "import sys, reward; print([m for m in ('torch', 'sympy', 'transformers') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


def command(*arguments):
    return subprocess.run([sys.executable, "reward.py", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_command_line():
    run = command(r"\frac12", "0.5")
    assert run.returncode == 0 and run.stdout.startswith("equal\n") and run.stdout.count("read as") == 2
    assert command("6", "5").stdout.startswith("not equal\n")
    assert "unreadable" in command("5)", "5").stdout
    for bad in ((), ("5",), ("5", "6", "7")):
        run = command(*bad)
        assert run.returncode == 2 and run.stdout == "" and run.stderr.count("\n") == 1


def test_command_line_with_a_closed_pipe_ends_quietly():
    arguments = [sys.executable, "reward.py", "5", "5"]
    run = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close()
    assert run.stderr.read() == b"" and run.wait() == -signal.SIGPIPE
