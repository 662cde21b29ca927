"""A run: its options, folder, checkpoints, metrics and log."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import torch
import transformers

from support import ranks
from support.cli import parse
from support.files import append_lines, atomic_write, make_folder, read_json, remove, save_json, save_text
from support.models import fingerprint, save_model
from support.plots import plot_training
from support.presets import PRESETS
from support.show import as_text
from support.statistics import mean, repeated_share


# -------------------- Its options
def parse_run(kind: type, argv: list[str] | None, about: str | None = None):
    """The options of a run: the defaults of the dataclass, overridden by the preset, then by the command line. With
    --resume they are those of the saved run. ValueError or OSError for what does not fit together."""
    given = parse(kind, argv, about)
    if given.get("resume"):
        return saved_options(kind, given)
    preset = given.get("preset", kind.preset)
    options = kind(**(parse(kind, PRESETS[preset].split()) | given))
    options.out = options.out or f"runs/{preset}-{datetime.now():%Y%m%d-%H%M%S}"
    # a process that was killed before its first step may leave a .part
    if any(path.suffix != ".part" for path in Path(options.out).glob("*")):
        raise ValueError(f"{options.out} is not empty: continue that run with --resume, or choose another --out")
    return options


def saved_options(kind: type, given: dict):
    """The options of the run to resume. Another value on the command line would make it a different run: ValueError."""
    if not (out := given.get("out")):
        raise ValueError("--resume needs the folder of the run: --out runs/NAME")
    path = Path(out) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"there is no run to resume in {out}: {path} is missing")
    saved = read_json(path)
    try:
        del saved["made_with"]  # see Run.write_config
        options = kind(**saved | {"resume": True, "out": out})
        if given.get("steps", 0) > options.steps:  # the steps so far keep their learning rates
            options.lr_steps, options.steps = options.lr_steps or options.steps, given["steps"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read by this version: {error}") from error
    there = vars(options)
    if other := [f"{name} ({there[name]} there, {given[name]} here)" for name in given if given[name] != there[name]]:
        raise ValueError(f"the run in {out} has other options: {', '.join(other)}; leave these out")
    return options


# -------------------- Its state, folder, metrics, log
class Run:
    """The state of a run and its folder. `critic` may be None; `optimizers` has the actor's, then any critic's."""

    def __init__(self, config, chat, actor, critic, reference, optimizers):
        self.config, self.folder, self.chat, self.step = config, Path(config.out), chat, 0
        self.rows: list[dict] = []  # of metrics.jsonl; also in the checkpoints
        self.given = asdict(config)  # as given: plan_run sets config.slots, and a resumed run may have another GPU
        self.actor, self.critic, self.reference, self.optimizers = actor, critic, reference, optimizers
        self.checkpointed = {"actor": actor, "actor_optimizer": optimizers[0]}
        if critic is not None:
            self.checkpointed |= {"critic": critic, "critic_optimizer": optimizers[1]}
        self.engine, self.planned_memory, self.offloaded_in_rollout = None, None, []  # see support/memory.py:plan_run

    def save(self) -> None:
        """Write a checkpoint, and delete all but the last few. OSError when it cannot be written."""
        state = {name: part.state_dict() for name, part in self.checkpointed.items()}
        state |= {"step": self.step, "metrics": self.rows}
        if ranks.rank() > 0:
            return
        if self.config.export_checkpoints:  # first: a step that is repeated after a kill writes it again
            save_model(self.actor, self.chat.tokenizer, self.folder / f"model-{self.step:06d}")
        path = self.folder / f"checkpoint-{self.step:06d}.pt"
        try:
            with atomic_write(path) as part:
                torch.save(state, part)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as either
            raise OSError(f"{path} cannot be written (full disk?), earlier ones are intact: {error!r:.150}") from error
        for old in sorted(self.folder.glob("checkpoint-*.pt"))[: -self.config.keep_checkpoints]:
            old.unlink()
        plot_training({"": self.rows}, self.folder / "training.png")

    def write_config(self, questions: dict[str, list]) -> None:
        """All options, versions, and fingerprints of base model and questions. When a resumed run has another base
        model or other questions than it began with: ValueError; other versions or uncommitted changes: a warning."""
        path = self.folder / "config.json"
        hashes = {name: sha256(json.dumps(each).encode()).hexdigest()[:16] for name, each in questions.items()}
        hashes["model"] = fingerprint(self.actor, self.chat)
        changes = "git diff --no-ext-diff --no-color HEAD | git hash-object --stdin | cut -c-8"
        command = f"git describe --always --abbrev=40 --dirty=-$({changes})"  # without git, the shell prints nothing
        git = subprocess.run(command, shell=True, cwd=Path(__file__).parent, capture_output=True, text=True)
        versions = dict(torch=torch.__version__, transformers=transformers.__version__, commit=git.stdout.strip())
        began = versions | hashes
        if self.config.resume:
            began = read_json(path)["made_with"]
            if differ := [f"--{name}" for name in hashes if began.get(name) != hashes[name]]:
                raise ValueError(f"{self.folder} began with other contents, precision or code: {', '.join(differ)}")
            if differ := [f"{name} {began.get(name)}" for name in versions if began.get(name) != versions[name]]:
                print(f"warning: the run began with other versions: {', '.join(differ)}", file=sys.stderr)
        save_json(self.given | {"resume": False, "made_with": began}, path)

    def restore(self) -> None:
        """Go on from the last sound checkpoint, if any. Later metrics are dropped: their steps are repeated."""
        if path := ranks.on_rank0(last_checkpoint, self.folder):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            try:
                for name, part in self.checkpointed.items():
                    part.load_state_dict(state[name])
                self.step, self.rows = state["step"], state["metrics"]
            except (KeyError, TypeError, RuntimeError, ValueError) as error:
                raise ValueError(f"{path} is of another model, or of another version of train.py: {error}") from error
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        ranks.on_rank0(save_text, lines, self.folder / "metrics.jsonl")

    def record(self, metrics: dict, dialogue: dict) -> None:
        """Append the step's line to metrics.jsonl. In the first, the last and every few steps, write a dialogue.
        Without a terminal for a progress bar, also print a line now and then."""
        self.rows.append(json.loads(json.dumps(metrics)))  # a checkpoint takes none of numpy's numbers
        append_lines([metrics], self.folder / "metrics.jsonl")
        step, steps = self.step, self.config.steps
        if step in (1, steps) or step % self.config.show_every == 0:
            save_text(as_text(dialogue) + "\n", make_folder(self.folder / "dialogues") / f"step-{step:06d}.txt")
        if not sys.stderr.isatty() and (step in (1, steps) or step % max(1, steps // 20) == 0):
            left = timedelta(seconds=round(metrics["seconds"] * (steps - step)))
            print(f"step {step} of {steps}: {in_brief(metrics)}, about {left} left", file=sys.stderr, flush=True)

    def warnings(self) -> list[str]:
        """What went wrong in the run, a sentence each."""
        rows, skipped = self.rows, sum(row.get("skipped", 0) for row in self.rows)
        truncated = mean(row["truncated"] for row in rows)
        idle = sum(row["learned"] == 0 for row in rows)
        sentences = {
            f"{truncated:.0%} of dialogues ran out of tokens (--max_new_tokens, --max_attempt_tokens)": truncated > 0.5,
            f"{skipped} optimiser steps were skipped because a gradient was not finite": skipped,
            f"{idle} of {len(rows)} steps had nothing to learn from: equal rewards, or all dialogues dropped": idle,
        }
        return [f"warning: {sentence}" for sentence, applies in sentences.items() if applies]


def last_checkpoint(folder: Path) -> Path | None:
    """The last sound checkpoint; None when none was written yet. A damaged one is reported and renamed. OSError when
    all are damaged or deleted: a run should not start anew by mistake."""
    for part in folder.glob("*.part"):  # left by a process that was killed while it wrote
        remove(part)
    for path in sorted(folder.glob("checkpoint-*.pt"), reverse=True):
        try:
            with ZipFile(path) as file:  # torch.load misses changed bytes; this compares every checksum
                if file.testzip() or not any(name.endswith("/data.pkl") for name in file.namelist()):
                    raise ValueError("a wrong checksum, or not a file of torch.save")
            return path
        except Exception as error:  # a damaged file raises half a dozen kinds
            path.rename(path.with_suffix(".corrupt"))
            print(f"{path} is corrupt ({error!r:.100}): trying the one before it", file=sys.stderr)
    if any(folder.glob("checkpoint-*")) or (folder / "training.png").exists():  # drawn with a checkpoint
        raise OSError(f"no checkpoint in {folder} can be read: start again with another --out")
    return None


def training_metrics(dialogues) -> dict:
    """The numbers of a step's Dialogues (rollout.py). accuracy_by_attempt[k - 1]: of the dialogues that were allowed k
    attempts or more, the share that was solved within k."""
    correct_D, used_D, allowed_D = dialogues.correct_D, dialogues.used_D, dialogues.allowed_D
    shares = [(correct_D & (used_D <= k))[allowed_D >= k].float().mean().item() for k in range(1, 1 + allowed_D.max())]
    per_dialogue = {
        "reward": dialogues.reward_D,
        "accuracy": correct_D,
        "attempts_used": used_D,
        "truncated": dialogues.truncated_D,
        "tokens_sampled": dialogues.sampled_DT.sum(1),
        "tokens_total": dialogues.length_D,
    }
    means = {name: values_D.float().mean().item() for name, values_D in per_dialogue.items()}
    repeated = repeated_share([[attempt.answer for attempt in attempts] for attempts in dialogues.attempts])
    return means | {"accuracy_first": shares[0], "accuracy_by_attempt": shares, "repeated": repeated}


def stage_speeds(dialogues, kept, clock: list[float]) -> dict:
    """Tokens per second of each stage: sampled ones in the rollout, elsewhere all those of `kept`."""
    sampled, total = int(dialogues.sampled_DT.sum()), int(kept.length_D.sum())
    stages = zip(("rollout", "score", "update"), (sampled, total, total), clock, clock[1:])
    rates = {f"{stage}_tokens_per_second": tokens / (end - start) for stage, tokens, start, end in stages}
    return rates | {"seconds": clock[-1] - clock[0]}


def describe(config, model, questions: int) -> str:
    """What a run is, for its first lines: the options are those that differ from its preset."""
    preset = type(config)(**parse(type(config), PRESETS[config.preset].split()), preset=config.preset, out=config.out)
    options = [f"--{name} {value}" for name, value in vars(config).items() if value != getattr(preset, name)]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"""{config.out}: {config.model}, {model.num_parameters():,} parameters, {questions} questions
preset {config.preset}, {" ".join(options) or "unchanged"}; {versions}"""


def in_brief(metrics: dict) -> str:
    """The metrics beside the progress bar."""
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in ("reward", "accuracy", "kl") if name in metrics)


def open_log(log_to: str | None, out: str, options: dict) -> Callable[[dict], None]:
    """The function that sends each step's metrics to "tensorboard" or "wandb" (Weights & Biases), or nowhere.
    ValueError when the package is not installed."""
    try:
        if log_to == "wandb":
            import wandb

            runs = sorted(Path(out).glob("wandb/*run-*"))  # of the same run before it was resumed: run-TIME-ID
            settings = dict(dir=out, id=runs[-1].name.split("-")[-1] if runs else None, resume="allow")
            wandb.init(project="multi-attempt", name=Path(out).name, config=options, **settings)
            return lambda metrics: wandb.log(metrics, step=metrics["step"])
        if log_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            add = SummaryWriter(out).add_scalar
            return lambda row: [add(key, x, row["step"]) for key, x in row.items() if isinstance(x, int | float)]
    except ImportError as error:
        raise ValueError(f"--log_to {log_to} needs a package that is not installed: {error}") from error
    return lambda metrics: None
