"""The command line and the files of the programs: options from a flat dataclass, mistakes in one sentence, runs that
can be resumed, and files that are never half-written."""

import difflib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import NoReturn, get_args, get_type_hints
from zipfile import ZipFile

import torch
from transformers import HfArgumentParser


def fail(message: object) -> NoReturn:
    """One sentence on stderr, exit code 2."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse(kind: type, argv: list[str] | None = None, defaults: dict | None = None):
    """The command line as an instance of the flat dataclass `kind`; `defaults` go before the dataclass's own. A field
    that may be None takes "none" too. Whatever is wrong ends the program with one sentence."""
    argv = sys.argv[1:] if argv is None else argv
    parser = HfArgumentParser(kind)
    parser.set_defaults(**(defaults or {}))
    parser.error = fail
    for action in parser._actions:
        if type(None) in get_args(get_type_hints(kind).get(action.dest)):

            def or_none(word: str, convert=action.type):
                return None if word.lower() == "none" else convert(word)

            or_none.__name__, action.type = action.type.__name__, or_none  # the name appears in argparse's messages
    # Unknown options first: argparse would rather complain that --model is missing than mention --modle.
    known = [option for action in parser._actions for option in action.option_strings]
    for option in (word.split("=")[0] for word in argv):
        if re.match("--?[A-Za-z]", option) and option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            fail(f"there is no option {option}" + (f": did you mean {near[0]}?" if near else ", see --help"))
    options, rest = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    return fail(f"'{rest[0]}' belongs to no option, see --help") if rest else options


def need(options, names: str, what: str, fits: Callable[[float], bool]) -> None:
    """ValueError for the first of these options that does not fit; None, where an option may be None, fits."""
    for name in names.split():
        if (value := getattr(options, name)) is not None and not fits(value):
            raise ValueError(f"--{name} must {what}, not {value}")


def parse_run(kind: type, presets: dict[str, dict], argv: list[str]):
    """The options of a run, from a dataclass that has `preset`, `out` and `resume` among its fields: its defaults,
    overridden by the preset or, with --resume, by the run's own options, overridden by the command line.

    Raises ValueError for what does not fit together, OSError for a folder that is not there.
    """
    early = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset", nargs="?", const=kind.preset, default=kind.preset)
    preset = early.parse_known_args(argv)[0].preset
    if preset not in presets:
        raise ValueError(f"there is no preset {preset!r}: choose one of {', '.join(presets)}")
    options = parse(kind, argv, presets[preset])
    if options.resume:
        return saved_options(kind, options.out, argv)
    options.out = options.out or f"runs/{preset}-{datetime.now():%Y%m%d-%H%M%S}"
    # a part is what a process that was killed before its first step may leave
    if Path(options.out).exists() and any(path.suffix != ".part" for path in Path(options.out).iterdir()):
        raise ValueError(f"{options.out} is not empty: continue that run with --resume, or choose another --out")
    return options


def saved_options(kind: type, out: str | None, argv: list[str]):
    """The options of the run to resume. Another value on the command line would make it a different run: ValueError."""
    if not out:
        raise ValueError("--resume needs the folder of the run: --out runs/NAME")
    path = Path(out) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"there is no run to resume in {out}: {path} is missing")
    saved = asdict(kind()) | json.loads(path.read_text()) | {"resume": True, "out": out}
    asked = asdict(parse(kind, argv, saved))
    differing = [f"{name} ({saved[name]} there, {asked[name]} here)" for name in asked if asked[name] != saved[name]]
    if differing:
        raise ValueError(f"the run in {out} has other options: {', '.join(differing)}; leave these out")
    return kind(**saved)


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yields the path to write to. Whoever looks at `path` itself, at whatever moment, sees the whole old file or the
    whole new one. When writing fails, the half-written part is removed."""
    part = Path(f"{path}.part")
    remove(part)  # of a process that was killed
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        remove(part)
        raise


def remove(path: Path) -> None:
    """Delete a file, or a folder and all that is in it, if there is one."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def save_json(result, path: str | Path) -> None:
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def save_checkpoint(state: dict, folder: Path, keep: int) -> None:
    """Write the state after step state["step"] and delete all but the last `keep`. OSError when it cannot be written:
    then those before stay as they are."""
    final = folder / f"checkpoint-{state['step']:06d}.pt"
    try:
        with whole(final) as path, open(path, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as either, the latter with no reason
        why = getattr(error, "strerror", None) or "is the disk full?"
        raise OSError(f"{final} cannot be written ({why}), the checkpoints before it are intact") from error
    for old in sorted(folder.glob("checkpoint-*.pt"))[:-keep]:
        old.unlink()


def last_checkpoint(folder: Path) -> Path | None:
    """The last sound checkpoint; None when none was written yet. A corrupt one is named, and set aside lest it count as
    one of the last few. OSError when all are corrupt: a run should not start anew by mistake."""
    for part in folder.glob("*.part"):  # of a process that was killed while it wrote
        remove(part)
    checkpoints = sorted(folder.glob("checkpoint-*.pt"), reverse=True)
    for path in checkpoints:
        try:
            with ZipFile(path) as file:  # torch.load reads over changed bytes; here every checksum is compared
                if damaged := file.testzip():
                    raise ValueError(f"wrong checksum of {damaged}")
            return path
        except Exception as error:  # a broken file makes zipfile raise half a dozen kinds
            path.rename(path.with_suffix(".corrupt"))
            print(f"{path} is corrupt ({error!r:.100}): the one before it is used", file=sys.stderr)
    if checkpoints:
        raise OSError(f"no checkpoint in {folder} can be read: start again with another --out")
    return None


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C or SIGTERM came; the caller finishes what it is at and stops. A second
    one of the same kind stops at once (torchrun sends SIGTERM after a Ctrl-C, so one of each is no hurry)."""
    came = []

    def note(number: int, frame) -> None:
        if number in came:
            raise KeyboardInterrupt
        came.append(number)
        os.write(2, b"\nstopping after this step; once more stops at once\n")  # print might be interrupted in a print

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def output_folder(out: str) -> Path:
    """The folder, made where it is not there. OSError in one sentence when nothing can be written into it."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise OSError(f"the output folder {out} cannot be written ({error.strerror}): choose another --out") from None
    return Path(out)


def open_log(log_to: str | None, out: str, options: dict) -> Callable[[dict], None]:
    """The function that takes each step's metrics to "tensorboard" or "wandb" (Weights & Biases), or nowhere.
    ValueError when the package is not installed."""
    try:
        if log_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(out)
        elif log_to == "wandb":
            import wandb

            wandb.init(project="multi-attempt", name=Path(out).name, config=options)
    except ImportError as error:
        raise ValueError(f"--log_to {log_to} needs a package that is not installed: {error}") from error

    def log(metrics: dict) -> None:
        if log_to == "wandb":
            wandb.log(metrics, step=metrics["step"])
        elif log_to == "tensorboard":
            for name, value in metrics.items():
                if isinstance(value, (int, float)):
                    writer.add_scalar(name, value, metrics["step"])

    return log
