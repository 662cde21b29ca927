"""A run: its folder, its checkpoints, and where its models are."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import torch
import transformers

from support import ranks
from support.files import append_lines, atomic_write, save_json, save_text
from support.journal import fingerprint
from support.memory import RESERVE, explain_memory, memory_plan, most_slots, needed
from support.models import device_memory, move, recompute_activations, save_model
from support.plots import plot_training, read_metrics
from support.show import as_text
from support.statistics import repeated_share


class Run:
    """The state of a run and its folder. Without a critic, that and its optimiser are None."""

    def __init__(self, config, chat, actor, critic, reference, actor_optimizer, critic_optimizer):
        self.config, self.folder, self.chat, self.step = config, Path(config.out), chat, 0
        self.options = asdict(config)  # with the slots left open, as another machine has another memory
        self.actor, self.critic, self.reference = actor, critic, reference
        self.parts = dict(actor=actor, actor_optimizer=actor_optimizer)  # what a checkpoint holds
        self.optimizers = [actor_optimizer]
        if critic is not None:
            self.parts |= dict(critic=critic, critic_optimizer=critic_optimizer)
            self.optimizers.append(critic_optimizer)
        self.engine = None  # of the rollouts, where memory allows to keep it from step to step
        if config.offload:
            move(reference.parameters(), torch.device("cpu"))
        if config.gradient_checkpointing:
            recompute_activations(*filter(None, (actor, critic)))

    @contextmanager
    def on_device(self, model):
        """With --offload, this model is on the device inside, and in host memory after it."""
        if self.config.offload:
            move(model.parameters(), self.actor.device)
        yield
        if self.config.offload:
            move(model.parameters(), torch.device("cpu"))

    def plan_memory(self, capacity: int) -> bool:
        """Choose the slots, if the options leave that open, and print the plan on CUDA. Returns whether the engine can
        stay in memory during the update."""
        config, model, available = self.config, self.actor, device_memory(self.actor.device)
        cuda = model.device.type == "cuda"
        settings = dict(shape=model.config, parameters=model.num_parameters(), element=model.dtype.itemsize)
        settings |= dict(capacity=capacity, processes=ranks.count(), critic=self.critic is not None)
        settings |= dict(offload=config.offload, gradient_checkpointing=config.gradient_checkpointing)
        settings |= dict(micro_batch_tokens=config.micro_batch_tokens, compiled=config.compile and cuda)
        config.slots = config.slots or most_slots(available, config.dialogues, **settings)
        settings["slots"] = min(config.slots, config.dialogues)
        settings["keep_engine"] = needed(memory_plan(**settings, keep_engine=True)) <= available
        self.planned_memory = needed(memory_plan(**settings)) - RESERVE
        if cuda and ranks.rank() == 0:
            print(explain_memory(available, **settings))
        return settings["keep_engine"]

    def memory(self) -> dict:
        """On CUDA the most bytes that tensors took so far, and what the plan said."""
        if self.actor.device.type != "cuda":
            return {}
        return {"device_memory": torch.cuda.max_memory_allocated(), "planned_memory": self.planned_memory}

    def save(self) -> None:
        """Write a checkpoint, and delete all but the last few. OSError when it cannot be written."""
        state = {name: part.state_dict() for name, part in self.parts.items()} | {"step": self.step}
        if ranks.rank() > 0:
            return
        path = self.folder / f"checkpoint-{self.step:06d}.pt"
        try:
            with atomic_write(path) as part:
                torch.save(state, part)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as either
            raise OSError(f"{path} cannot be written, the checkpoints before it are intact: {error!r:.150}") from error
        for old in sorted(self.folder.glob("checkpoint-*.pt"))[: -self.config.keep_checkpoints]:
            old.unlink()
        plot_training({"": read_metrics(self.folder)}, self.folder / "training.png")
        if self.config.export_checkpoints:
            save_model(self.actor, self.chat.tokenizer, self.folder / f"model-{self.step:06d}")

    def write_config(self, questions: dict[str, list]) -> None:
        """All options, versions, and fingerprints of base model and questions. ValueError when a run goes on with
        another base model or other questions than it began with."""
        path = self.folder / "config.json"
        (self.folder / "dialogues").mkdir(parents=True, exist_ok=True)
        hashes = {name: sha256(repr(problems).encode()).hexdigest()[:16] for name, problems in questions.items()}
        hashes["model"] = fingerprint(self.actor, self.chat)
        if self.config.resume:
            began = json.loads(path.read_text())["made_with"]
            if differ := [f"--{name}" for name in hashes if began.get(name) != hashes[name]]:
                raise ValueError(f"the run in {self.folder} began with other contents of {' and '.join(differ)}")
        else:
            command = "git describe --always --dirty --abbrev=40"  # without git, the shell prints nothing
            git = subprocess.run(command, shell=True, cwd=Path(__file__).parent, capture_output=True, text=True)
            versions = dict(torch=torch.__version__, transformers=transformers.__version__, commit=git.stdout.strip())
            began = versions | hashes
        save_json(self.options | {"resume": False, "made_with": began}, path)

    def restore(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        if paths := ranks.on_rank0(lambda: sorted(self.folder.glob("checkpoint-*.pt"))):
            try:
                state = torch.load(paths[-1], map_location="cpu", weights_only=True)
                for name, part in self.parts.items():
                    part.load_state_dict(state[name])
                self.step = state["step"]
            except Exception as error:  # a damaged file makes torch raise half a dozen kinds
                advice = "without it, the run goes on from the checkpoint before it"
                raise ValueError(f"{paths[-1]} cannot be restored ({error!r:.150}): {advice}") from error
        ranks.on_rank0(self.cut_metrics)

    def cut_metrics(self) -> None:
        """Drop the metrics after the checkpoint, because those steps come again. There is a line for each step."""
        path = self.folder / "metrics.jsonl"
        path.touch()
        lines = path.read_text().splitlines(keepends=True)
        if len(lines) < self.step:
            raise ValueError(f"{path} has {len(lines)} lines, but the last checkpoint is of step {self.step}")
        save_text("".join(lines[: self.step]), path)

    def record(self, metrics: dict, dialogue: dict) -> None:
        """Append the step's line to metrics.jsonl. In the first, the last and every few steps write a dialogue and,
        where there is no terminal for a progress bar, print a line."""
        append_lines([metrics], self.folder / "metrics.jsonl")  # before the checkpoint that counts on it
        step, steps = self.step, self.config.steps
        if step in (1, steps) or step % self.config.show_every == 0:
            save_text(as_text(dialogue) + "\n", self.folder / "dialogues" / f"step-{step:06d}.txt")
            if not sys.stderr.isatty():
                print(f"step {step} of {steps}: {in_brief(metrics)}", file=sys.stderr, flush=True)

    def last_dialogue(self) -> str:
        text = (self.folder / "dialogues" / f"step-{self.step:06d}.txt").read_text(encoding="utf-8")
        return f"\nA dialogue of step {self.step}:\n\n{text}"


def training_metrics(batch) -> dict:
    """The numbers of a step's Dialogues (rollout.py). accuracy_by_attempt[k - 1]: of the dialogues that were allowed k
    attempts or more, the share that was solved within k."""
    solved_at_D = torch.where(batch.correct_D, batch.used_D, torch.iinfo(torch.long).max)
    most = int(batch.allowed_D.max())
    by_attempt = [(solved_at_D[batch.allowed_D >= k] <= k).float().mean().item() for k in range(1, most + 1)]
    per_dialogue = {
        "reward": batch.reward_D,
        "accuracy": batch.correct_D,
        "attempts_used": batch.used_D,
        "truncated": batch.truncated_D,
        "tokens_sampled": batch.sampled_DT.sum(1),
        "tokens_total": batch.length_D,
    }
    means = {name: values_D.float().mean().item() for name, values_D in per_dialogue.items()}
    repeated = repeated_share([[attempt.answer for attempt in attempts] for attempts in batch.attempts])
    return means | {"accuracy_first": by_attempt[0], "accuracy_by_attempt": by_attempt, "repeated": repeated}


def stage_speeds(dialogues, training_set, clock: list[float]) -> dict:
    """Tokens per second of each stage: sampled ones in the rollout, elsewhere all of the dialogues trained on."""
    sampled, total = int(dialogues.sampled_DT.sum()), int(training_set.length_D.sum())
    stages = zip(("rollout", "score", "update"), (sampled, total, total), clock, clock[1:])
    rates = {f"{stage}_tokens_per_second": tokens / (end - start) for stage, tokens, start, end in stages}
    return rates | {"seconds": clock[-1] - clock[0]}


def in_brief(metrics: dict) -> str:
    """The metrics beside the progress bar."""
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in ("reward", "accuracy", "kl") if name in metrics)


def open_log(log_to: str | None, out: str, options: dict) -> Callable[[dict], None]:
    """The function that takes each step's metrics to "tensorboard" or "wandb" (Weights & Biases), or nowhere.
    ValueError when the package is not installed."""
    try:
        if log_to == "wandb":
            import wandb

            wandb.init(project="multi-attempt", name=Path(out).name, dir=out, config=options)
            return lambda metrics: wandb.log(metrics, step=metrics["step"])
        if log_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer, numbers = SummaryWriter(out), (int, float)
            return lambda row: [writer.add_scalar(k, x, row["step"]) for k, x in row.items() if isinstance(x, numbers)]
    except ImportError as error:
        raise ValueError(f"--log_to {log_to} needs a package that is not installed: {error}") from error
    return lambda metrics: None
