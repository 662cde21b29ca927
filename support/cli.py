"""The command line: options from a flat dataclass, mistakes in one sentence, Ctrl-C."""

import difflib
import os
import re
import signal
import sys
import traceback
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import NoReturn, get_args


def fail(reason: object, hint: str = "", where: str = "") -> NoReturn:
    """One sentence on stderr, exit code 2; after Ctrl-C 130. Once long work has begun, `hint` says how to go on. From
    then on a ValueError is a bug, so its traceback comes first."""
    if isinstance(reason, KeyboardInterrupt):
        print(f"\nstopped{hint}", file=sys.stderr)
        raise SystemExit(130)
    if hint and isinstance(reason, ValueError):
        traceback.print_exception(reason)
    sentence = re.sub(r"\[Errno \d+\] ", "", (str(reason) or repr(reason)).splitlines()[0])
    print(f"{Path(sys.argv[0]).name}: {where}{sentence}{hint}", file=sys.stderr)
    raise SystemExit(2)


# -------------------- Options
POSITIVE = "be a number greater than 0", lambda value: 0 < value < float("inf")
NOT_NEGATIVE = "be a number, 0 or more", lambda value: 0 <= value < float("inf")


def between(low: float, high: float):
    return f"lie between {low} and {high}", lambda value: low <= value <= high


def one_of(*choices: str):
    return f"be one of {', '.join(choices)}", lambda value: value in choices


def option(default, help: str, valid=("", lambda value: True), *, group: str = "options"):
    """A field of a dataclass of options. `valid`: what its value must be, in words, and the function that decides. None
    is not checked. Without a default (`...`) the option is required."""
    return field(default=MISSING if default is ... else default, metadata=dict(help=help, valid=valid, group=group))


def require(options, name: str, words: str, valid: Callable[[object], bool]) -> None:
    """An option that does not fit ends the program with one sentence."""
    if not valid(getattr(options, name)):
        fail(f"--{name} must {words}, not {getattr(options, name)}")


def parse(kind: type, argv: list[str] | None, about: str | None = None) -> dict:
    """The options that a command line (None: the process's) gives, by name. A mistake ends the program."""
    sys.__stdout__.reconfigure(errors="replace")  # a model may write what the terminal's encoding lacks
    how = dict(usage="%(prog)s --OPTION VALUE ...", formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser = ArgumentParser(description=about, argument_default=SUPPRESS, **how)
    parser.error = lambda message: fail(message.removeprefix("argument "))
    options, groups = fields(kind), {"options": parser}
    for each in options:
        title = each.metadata["group"]
        default = "required" if each.default is MISSING else f"default: {each.default}"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        flag = dict(nargs="?", const=True, metavar="true") if each.type is bool else dict(metavar="")
        flag |= dict(type=converter(each.type), help=f"{each.metadata['help']} ({default})")
        groups[title].add_argument(f"--{each.name}", **flag)
    words = sys.argv[1:] if argv is None else argv  # in which --max-attempts is --max_attempts
    argv = [re.sub("^--[a-z-]+", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in words]
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        word = unknown[0].split("=")[0]
        alike = difflib.get_close_matches(word.strip("-"), [each.name for each in options], n=1, cutoff=0.7)
        fail(f"there is no option {word}" + (f": did you mean --{alike[0]}?" if alike else ", see --help"))
    if missing := [f"--{each.name}" for each in options if each.default is MISSING and each.name not in given]:
        fail(f"{', '.join(missing)} must be given, see --help")
    for each in options:
        if getattr(given, each.name, None) is not None:
            require(given, each.name, *each.metadata["valid"])
    return vars(given)


def converter(kind: type) -> Callable[[str], object]:
    """From a word to a value of this type. "none" is None where the type has it; for a number, "auto" is None too."""
    base, *optional = get_args(kind) or (kind,)

    def convert(word: str):
        if optional and (word.lower() == "none" or word.lower() == "auto" and base is not str):
            return None
        return bool(("false", "true").index(word.lower())) if base is bool else base(word)

    convert.__name__ = "true-or-false" if base is bool else base.__name__  # argparse says "invalid int value"
    return convert


# -------------------- Ctrl-C
@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C or SIGTERM came, after which the caller should stop. A second signal
    of the same kind stops at once. One of each does not, because torchrun may send both."""
    signals, came = (signal.SIGINT, signal.SIGTERM), []

    def note(number: int, frame) -> None:
        came.append(number)
        signal.signal(number, signal.default_int_handler)
        os.write(2, b"\nstopping after this step; repeat to stop at once\n")  # print is not safe in a signal handler

    for number in signals:
        signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number in signals:
            signal.signal(number, signal.default_int_handler)
