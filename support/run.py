"""A run: its folder, its checkpoints, and where its models are."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from zipfile import ZipFile

import torch

from support import ranks
from support.files import atomic_write, remove, save_text
from support.memory import explain_memory
from support.models import move, recompute_activations


class Run:
    """The state of a run and its folder. Without a critic, that and its optimiser are None."""

    def __init__(self, config, chat, actor, critic, reference, actor_optimizer, critic_optimizer):
        self.config, self.folder, self.chat, self.step = config, Path(config.out), chat, 0
        self.actor, self.critic, self.reference = actor, critic, reference
        self.optimizers = [each for each in (actor_optimizer, critic_optimizer) if each is not None]
        parts = dict(actor=actor, critic=critic, actor_optimizer=actor_optimizer, critic_optimizer=critic_optimizer)
        self.parts = {name: part for name, part in parts.items() if part is not None}  # what a checkpoint holds
        self.offload(reference, *self.optimizers)

    def offload(self, *things) -> None:
        """With --offload, these models or optimisers go to host memory."""
        if self.config.offload:
            move(tensors_of(things), torch.device("cpu"))

    @contextmanager
    def on_device(self, *things):
        """With --offload, these models or optimisers are on the device inside, and in host memory after it."""
        if self.config.offload:
            move(tensors_of(things), self.actor.device)
        yield
        self.offload(*things)  # an optimiser has more tensors after its first step

    def recomputing(self):
        """The context of the update that --gradient_checkpointing asks for."""
        models = [model for model in (self.actor, self.critic) if model is not None]
        return recompute_activations(*models) if self.config.gradient_checkpointing else nullcontext()

    def memory_plan(self, available: int, capacity: int) -> str:
        """In words, for the long work to come: what fits into a device of `available` bytes."""
        config, model = self.config, self.actor
        settings = {name: getattr(config, name) for name in ("micro_batch_tokens", "offload", "gradient_checkpointing")}
        settings |= dict(slots=min(config.slots, config.dialogues), capacity=capacity, critic=self.critic is not None)
        settings |= dict(shape=model.config, parameters=model.num_parameters(), element=model.dtype.itemsize)
        return explain_memory(available, processes=ranks.count(), **settings)

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()} | {"step": self.step}
        if ranks.rank() == 0:
            save_checkpoint(state, self.folder, self.config.keep_checkpoints)

    def restore(self) -> None:
        """Continue from the last checkpoint: metrics written after it are dropped, because those steps come again."""
        if path := ranks.on_rank0(lambda: last_checkpoint(self.folder)):
            state = torch.load(path, map_location="cpu", weights_only=True)
            with self.on_device(*self.optimizers):
                for name, part in self.parts.items():
                    part.load_state_dict(state[name])
            self.step = state["step"]
        metrics = self.folder / "metrics.jsonl"
        if metrics.exists() and ranks.rank() == 0:  # one line a step
            save_text("".join(metrics.read_text().splitlines(keepends=True)[: self.step]), metrics)

    def record(self, metrics: dict, dialogues) -> None:
        """Append the step's line to metrics.jsonl and, every few steps, write one dialogue as text."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(metrics) + "\n")
        if self.step % self.config.show_every == 0:
            d = int(dialogues.used_D.argmax())  # the first of those with the most attempts
            tokens = dialogues.tokens_DT[d, : dialogues.length_D[d]].tolist()
            lines = [self.chat.text(tokens), f"----- step {self.step}: reward {dialogues.reward_D[d]:+.2f}"]
            for i, attempt in enumerate(dialogues.attempts[d], 1):
                verdict = "correct" if attempt.correct else "out of tokens" if attempt.truncated else "incorrect"
                lines.append(f"----- attempt {i}: {verdict}, answer {attempt.answer!r}")
            (self.folder / "dialogues").mkdir(exist_ok=True)
            text = "\n".join(lines) + "\n"
            (self.folder / "dialogues" / f"step-{self.step:06d}.txt").write_text(text, encoding="utf-8")


def tensors_of(things):
    """All tensors of models, and of optimisers those that only the update needs."""
    for thing in things:
        yield from thing.parameters() if isinstance(thing, torch.nn.Module) else thing.offloadable()


def save_checkpoint(state: dict, folder: Path, keep: int) -> None:
    """Write the state after step state["step"] and delete all but the last `keep`. OSError when it cannot be written:
    then those before stay as they are."""
    final = folder / f"checkpoint-{state['step']:06d}.pt"
    try:
        with atomic_write(final) as path, open(path, "wb") as file:
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


def stage_speeds(dialogues, training_set, clock: list[float]) -> dict:
    """Tokens per second of each stage: sampled ones in the rollout, elsewhere all of the dialogues trained on."""
    sampled, total = int(dialogues.sampled_DT.sum()), int(training_set.length_D.sum())
    stages = zip(("rollout", "score", "update"), (sampled, total, total), clock, clock[1:])
    rates = {f"{stage}_tokens_per_second": tokens / (end - start) for stage, tokens, start, end in stages}
    return rates | {"seconds": clock[-1] - clock[0]}


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
