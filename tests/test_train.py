"""Training: what a step draws and reports, what a run leaves behind, that every option does what it says, that every
mistake is one sentence, and that the loop learns. tests/test_resume.py is about interruptions."""

import ast
import json
import math
import re
import sys
from collections import Counter
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers
from conftest import small_model
from tiny_runs import assert_same_run, in_call, launch, names, read_config, refused, same
from transformers import AutoModelForCausalLM

import data
import evaluate
import train
from data import Problem
from reward import Rules, reward
from rollout import Attempt, Dialogues, LiveDialogue, to_dialogues
from support import cli, memory
from support.run import parse_run, stage_speeds, training_metrics
from support.show import as_text
from train import Config, draw_questions_and_attempts

pytestmark = pytest.mark.usefixtures("inputs")
PROBLEMS = [Problem(str(i), "") for i in range(7)]


# -------------------- It learns
def test_it_learns_from_failures(tokenizer):
    """The gold answer is 5 or 17, by the toss of a coin, and only the feedback tells which. Two attempts that do not
    look back solve half of the dialogues if they are always equal, three quarters if they are random. To solve all of
    them, the model must change an answer that was called incorrect."""
    coin, model = [Problem("Which?", "5"), Problem("Which?", "17")], small_model(tokenizer, seed=1)
    with torch.no_grad():
        model.lm_head.bias[model.lm_head.bias >= 4] += 3  # boxes and both numbers are almost all it writes
    replaced = {"train.load": lambda name: coin, "train.load_model": lambda *_: (model, tokenizer)}
    options = """--steps 28 --dialogues 64 --minibatches 4 --min_attempts 2 --max_attempts 2 --lr 5e-3 --critic_lr 1e-2
        --lr_warmup 0 --kl_coef 0.02 --max_new_tokens 30 --max_attempt_tokens 8 --slots 64 --save_every 28"""
    accuracies = [row["accuracy"] for row in launch(options, replaced).rows]
    assert accuracies[0] < 0.3 and sum(accuracies[-4:]) / 4 > 0.85, accuracies


# -------------------- The parts of a step
def questions(config: Config, problems: list[Problem], step: int) -> list[str]:
    return [problem.question for problem in draw_questions_and_attempts(config, problems, step)[0]]


def test_each_pass_asks_every_question_once_in_a_new_order():
    asked = [question for step in range(1, 15) for question in questions(Config(dialogues=3, seed=5), PROBLEMS, step)]
    passes = [tuple(asked[i : i + 7]) for i in range(0, 42, 7)]
    assert all(sorted(order) == list("0123456") for order in passes) and len(set(passes)) == 6
    wide = Config(dialogues=21, seed=5)  # one step of three passes: the same sequence
    assert questions(wide, PROBLEMS, 1) + questions(wide, PROBLEMS, 2) == asked


def test_the_dialogues_of_a_group_are_neighbours_with_the_same_question_and_attempts():
    single, grouped = Config(dialogues=3, seed=5), Config(dialogues=12, group_size=4, seed=5)
    for step in range(1, 6):  # passes count questions, not copies
        once, copied = (draw_questions_and_attempts(config, PROBLEMS, step) for config in (single, grouped))
        assert copied == tuple([x for x in drawn for _ in range(4)] for drawn in once)


@pytest.mark.parametrize("low, high", [(1, 5), (2, 4), (3, 3)])
def test_attempts_are_uniform_whatever_the_question(low, high):
    config, counts = Config(dialogues=1001, min_attempts=low, max_attempts=high), Counter()
    for step in range(1, 21):
        problems, allowed = draw_questions_and_attempts(config, PROBLEMS, step)
        counts.update(zip((problem.question for problem in problems), allowed))
    assert sorted(counts) == [(question, n) for question in "0123456" for n in range(low, high + 1)]
    assert list(counts.values()) == pytest.approx([20 * 143 / (high - low + 1)] * len(counts), rel=0.15)


def test_no_stream_of_random_numbers_serves_two_purposes(monkeypatch):
    """Numpy seeds (a, b) and (a, b, 0) are the same stream: numbers of two purposes would not be independent."""
    purposes, make = {}, np.random.default_rng

    def recorded(seed):
        caller = sys._getframe(1)
        purpose = caller.f_lineno if caller.f_code.co_name != "attempt_loop" else seed  # one stream a dialogue
        state = tuple(np.random.SeedSequence(seed).generate_state(4))
        purposes.setdefault(state, set()).add((caller.f_code.co_name, purpose))
        return make(seed)

    monkeypatch.setattr(np.random, "default_rng", recorded)
    launch("--steps 3")
    assert len(purposes) > 3 * 8 and not [used for used in purposes.values() if len(used) > 1]


def dialogues_of(*rows: tuple[str, int]) -> Dialogues:
    """Dialogues from (answers, attempts allowed): "-" is an attempt that was cut off, "*" marks the correct answer. A
    prompt has 3 tokens, an attempt 2, a feedback 2."""
    finished = []
    for answers, allowed in rows:
        live = LiveDialogue(0, Problem("", ""), allowed, tokens=[], dialogue_limit=0)
        for i, word in enumerate(answers.split()):
            cut, span = word == "-", (3 + 4 * i, 5 + 4 * i)
            live.attempts.append(Attempt(*span, "", None if cut else word.strip("*"), cut, word.endswith("*")))
        live.tokens, live.logps = [0] * live.attempts[-1].end, [0.0] * live.attempts[-1].end
        finished.append(live)
    return to_dialogues(finished, Rules(None, None, reward))


def test_training_metrics_by_hand():
    row = training_metrics(dialogues_of(("1*", 1), ("1", 1), ("1 2*", 2), ("1 1 -", 4), ("- 2 2 3*", 4)))
    assert row.pop("accuracy_by_attempt") == pytest.approx([1 / 5, 1 / 3, 0 / 2, 1 / 2])
    repeated = 2 / 5  # 2; 1 again; 2, 2 again, 3
    means = dict(reward=0.4, accuracy=3 / 5, accuracy_first=1 / 5, attempts_used=11 / 5, repeated=repeated)
    assert row == pytest.approx(means | dict(truncated=1 / 5, tokens_sampled=22 / 5, tokens_total=49 / 5))
    json.dumps(row, allow_nan=False)
    single = training_metrics(dialogues_of(("1", 1), ("1*", 1)))
    assert single["accuracy_by_attempt"] == [0.5] and single["repeated"] is None


def test_stage_speeds():
    dialogues = dialogues_of(("1 2", 2), ("1 2 3", 3))  # 4 of 9 and 6 of 13 tokens are sampled
    speeds = stage_speeds(dialogues, dialogues.select(torch.tensor([1])), clock=[10.0, 12.0, 16.0, 26.0])
    assert speeds.pop("seconds") == 16.0
    assert speeds == {f"{k}_tokens_per_second": x for k, x in (("rollout", 5.0), ("score", 3.25), ("update", 1.3))}


# -------------------- What a run leaves behind
METRICS = """step reward accuracy accuracy_first accuracy_by_attempt attempts_used repeated truncated tokens_sampled
    tokens_total explained_variance policy_loss value_loss kl entropy approx_kl clipfrac ratio skipped grad_norm
    critic_grad_norm lr critic_lr learned"""
FILES = "accuracy.png checkpoint-000002.pt config.json dialogues evaluation.json metrics.jsonl model training.png"


@cache
def finished_run(dtype: str = "float32"):
    evaluation = "--eval_data held_out.jsonl --eval_limit 3 --eval_attempts 2"
    return launch(f"{evaluation} --feedback uncounted --lr 1e-2 --show_every 2 --dtype {dtype}", report=True)


def test_run_folder():
    run = finished_run()
    assert names(run.folder) == FILES.split()
    config = json.loads((run.folder / "config.json").read_text())
    assert config.pop("made_with").keys() >= {"torch", "transformers", "commit", "model", "data"}
    assert config == asdict(run.run.config) and config["feedback"] == "uncounted"
    results, (dialogues, _) = json.loads((run.folder / "evaluation.json").read_text()), run.rollouts
    assert list(results) == ["base", "trained"]
    texts = [run.run.chat.decode(tokens) for tokens in dialogues.tokens_DT.tolist()]
    for result in results.values():
        assert result["questions"] == 3 and [row["attempts"] for row in result["by_attempts"]] == [1, 2]
        assert {d["question"] for d in result["dialogues"]} == {"Another 0", "Another 1", "Another 2"}
        texts += [dialogue["text"] for dialogue in result["dialogues"]]
    answered = [text for text in texts if "answer is incorrect." in text]
    assert len(answered) > 4 and not any("attempts left" in text for text in answered)  # --feedback uncounted
    assert "base, 45,664 parameters, 12 questions" in run.output and "| attempts allowed" in run.output
    assert [row["step"] for row in run.rows] == [1, 2] and all(set(row) == set(METRICS.split()) for row in run.rows)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["seconds"] > 0 and row["rollout_tokens_per_second"] > 0 for row in rows)


def test_a_dialogue_of_the_first_the_last_and_every_few_steps():
    """The first of its step in which feedback was given, whole, with gold answer and verdicts; at the end of the run it
    is printed as well."""
    result = launch("--steps 5 --show_every 2 --save_every 5", report=True)
    assert names("run/dialogues") == [f"step-{step:06d}.txt" for step in (1, 2, 4, 5)]
    for step in (1, 2, 4, 5):
        shown = Path(f"run/dialogues/step-{step:06d}.txt").read_text(encoding="utf-8")
        (problem,) = [p for p in data.load("questions.jsonl") if f"user\n{p.question}<" in shown]
        d = [used > 1 for used in result.rollouts[step - 1].used_D.tolist()].index(True)
        record = evaluate.dialogue_record(result.rollouts[step - 1], d, problem, result.run.chat)
        assert shown == as_text(record) + "\n" and f"gold answer {problem.gold}, reward " in shown
    assert f"A dialogue of step 5:\n\n{shown}" in result.output


def test_what_a_run_prints_without_a_terminal(capsys):
    """Without a terminal there is no bar: a line is printed at every twentieth of the run, its first and its last step.
    At the end the run says what went wrong."""
    replaced = {"train.update": lambda *_: {"kl": 0.25, "learned": 1.0, "skipped": 2}}
    result = launch("--steps 45 --dialogues 2 --max_new_tokens 1 --save_every 45 --out long", replaced, report=True)
    first, second = result.output.splitlines()[:2]
    assert first == "long: base, 45,664 parameters, 12 questions"
    assert second.startswith("preset paper, --model base --data questions.jsonl ") and "--steps 45 " in second
    assert second.endswith(f"; torch {torch.__version__}, transformers {transformers.__version__}")
    assert "--clip" not in second and "--out" not in second
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert [int(line.split()[1]) for line in lines] == [1, *range(2, 45, 2), 45]
    brief = r"step 45 of 45: reward -?[\d.]+, accuracy [\d.]+, kl 0.250, about 0:00:00 left"
    assert re.fullmatch(brief, lines[-1])
    assert "% of dialogues ran out of tokens" in result.output
    assert "warning: 90 optimiser steps were skipped" in result.output and "warning" not in finished_run().output


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_models_of_a_run_and_their_precision(dtype):
    """The reference stays the base model. Masters and moments are float32 also in a bfloat16 run."""
    run, folder, kind = finished_run(dtype).run, finished_run(dtype).folder, getattr(torch, dtype)
    models = run.actor, run.critic, run.reference
    assert {weight.dtype for model in models for weight in model.parameters()} == {kind}
    assert {model.config._attn_implementation for model in models} == {"causal"}
    assert same(run.reference.state_dict(), AutoModelForCausalLM.from_pretrained("base", dtype=kind).state_dict())
    assert not any(weight.requires_grad for weight in run.reference.parameters())
    optimizers = [torch.load(folder / "checkpoint-000002.pt")[f"{name}_optimizer"] for name in ("actor", "critic")]
    states = [state for optimizer in optimizers for state in optimizer["states"].values()]
    assert {x.dtype for state in states for x in state.values()} == {torch.float32}
    assert run.optimizers == [*run.checkpointed] == []  # views of the weights would keep them on a GPU
    assert not run.actor.training and not run.critic.training  # no dropout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_exported_model_is_the_trained_one(dtype):
    """evaluate.py, which is asked as the run was, finds in it what the run found."""
    run, folder = finished_run(dtype).run, finished_run(dtype).folder
    exported = AutoModelForCausalLM.from_pretrained(folder / "model")  # no option names the dtype
    assert exported.dtype == getattr(torch, dtype) and same(exported.state_dict(), run.actor.state_dict())
    assert not same(exported.state_dict(), run.reference.state_dict())
    assert "causal" not in (folder / "model" / "config.json").read_text()  # a name of ours
    command = f"--model {folder}/model --data first_three.jsonl --attempts 2 --slots 8 --device cpu --dtype {dtype}"
    evaluate.main(f"{command} --out evaluation".split())
    (found,) = json.loads(Path("evaluation/results.json").read_text())["models"].values()
    (path,) = Path("evaluation").glob("dialogues-*.json")
    found["dialogues"] = json.loads(path.read_text())
    of_the_run = json.loads((folder / "evaluation.json").read_text())
    assert found == of_the_run["trained"] and found["dialogues"] != of_the_run["base"]["dialogues"]
    assert any(len(dialogue["attempts"]) > 1 for dialogue in found["dialogues"])


def test_the_last_checkpoints_stay_and_every_exported_model():
    run = launch("--steps 5 --save_every 2 --keep_checkpoints 2 --export_checkpoints").run
    others = "checkpoint-000004.pt checkpoint-000005.pt config.json dialogues metrics.jsonl"
    assert names("run") == [*others.split(), *(f"model-{step:06d}" for step in (2, 4, 5))]
    fourth, fifth = (AutoModelForCausalLM.from_pretrained(f"run/model-{step:06d}").state_dict() for step in (4, 5))
    assert same(fifth, run.actor.state_dict()) and not same(fourth, fifth)


# -------------------- The options
def test_every_option_is_read_and_every_name_read_is_an_option():
    files = "train.py", "ppo.py", "support/run.py", "rollout.py"
    trees = [ast.parse((Path(train.__file__).parent / file).read_text()) for file in files]
    attributes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    read = {node.attr for node in attributes if ast.unparse(node.value) in ("config", "self.config")}
    assert read == {each.name for each in fields(Config)}


def test_the_defaults_are_the_papers():
    paper = """--model Qwen/Qwen2.5-Math-1.5B --steps 1280 --dialogues 1024 --minibatches 8 --epochs 1 --min_attempts 1
        --max_attempts 5 --feedback paper --chat_template chatml --temperature 1 --max_prompt_tokens 1024
        --max_new_tokens 3000 --max_attempt_tokens none --group_size 1 --attempt_discount 1 --unboxed_reward -1
        --gamma 1 --gae_lambda 0.99 --clip 0.2 --value_clip 0.2 --kl_coef 0.01 --lr 5e-7 --critic_lr 1e-5
        --lr_warmup 0.03 --max_grad_norm 1 --drop_truncated false --drop_uniform_groups false --normalise std
        --clip_high none --loss_mean tokens --wrong_reward 0 --repeat_penalty 0 --calibrated false"""
    assert cli.parse(Config, paper.split()).items() <= asdict(Config()).items()
    assert train.PRESETS["paper"] == ""


@pytest.mark.parametrize("preset", train.PRESETS)
def test_presets(preset, monkeypatch):
    monkeypatch.setattr(train, "load", lambda name: [Problem(name, "")])  # no download
    config, *_ = train.read_inputs(["--preset", preset, "--out", "run"])
    given = cli.parse(Config, train.PRESETS[preset].split())
    assert asdict(config) == asdict(Config(preset=preset, out="run")) | given
    sets = {config.data, config.validation_data, *config.eval_data.split(",")}
    assert sets <= {*data.RIDDLES, *data.EASY, *data.SETS}


def test_the_command_line_goes_before_the_preset_and_the_preset_before_the_defaults():
    config = parse_run(Config, "--preset=smoke --steps 7 --eval_limit none".split())
    assert (config.steps, config.eval_limit, config.dialogues, config.clip) == (7, None, 8, 0.2)
    assert re.fullmatch(r"runs/smoke-\d{8}-\d{6}", config.out)


PLAIN = "--steps 1 --epochs 2 --lr 3e-3 "


@cache
def plain():
    """The run with which those below are compared: each of them changes one of its options."""
    return launch(f"{PLAIN} --out plain")


LEARNERS = """
actor critic: --gamma 0.9
actor critic: --gae_lambda 0.5
actor critic: --max_grad_norm 0.01
actor critic: --temperature 0.7
actor critic: --seed 1
actor: --lr 1e-3
actor: --clip 0.001
actor: --clip_high 0.001
actor: --normalise centre
actor: --normalise none
actor: --kl_coef 1
actor critic: --loss_mean dialogues
critic: --critic_lr 1e-3
critic: --value_clip 0.001
"""


@pytest.mark.parametrize("case", LEARNERS.strip().splitlines())
def test_an_option_changes_what_actor_or_critic_learn(case):
    """The critic's own options cannot reach the actor in one step."""
    models, option = case.split(": ")
    parts, others = plain().run.checkpointed, launch(PLAIN + option).run.checkpointed
    changed = [name for name in ("actor", "critic") if not same(parts[name].state_dict(), others[name].state_dict())]
    assert changed == models.split()


@pytest.mark.parametrize("option", ["--slots 3", "--micro_batch_tokens 1"])
def test_memory_options_change_no_result(option):
    (one,), (other,) = plain().rows, launch(PLAIN + option).rows
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_options_for_less_memory_change_no_bit(dtype):
    one = launch(f"--dtype {dtype} --out one")
    for option in ("gradient_checkpointing", "offload"):
        assert_same_run(one.folder, launch(f"--dtype {dtype} --{option} --out {option}").folder)


@pytest.mark.parametrize("option, in_rollout", [("--offload", False), ("", True)])
def test_what_waits_in_host_memory(option, in_rollout):
    """First come the optimisers and check_model, then two steps. The base model is on the device only for its
    log-probabilities; masters and moments only for their own step, or, if so planned, not in rollout and validation."""
    seen, replaced = [], {"support.memory.most_slots": lambda *_, **settings: (3, in_rollout)}
    for name in ("rollout", "reference_logps_and_values", "update", "validate"):
        replaced |= in_call(f"train.{name}", 1, lambda work, name=name: seen.append(name) or work(), last=99)
    replaced["support.models.move"] = lambda tensors, device: seen.append((len(tensors), device.type))
    replaced["ppo.move"] = lambda tensors, device: seen.append(len(tensors))
    run = launch(f"{option} --dtype bfloat16 --eval_every 1 --validation_data held_out.jsonl", replaced).run
    base, weights = len(list(run.reference.parameters())), sum(len(each.weights) for each in run.optimizers)
    states = (3 * weights * in_rollout, "cpu")  # a master and two moments of each weight
    step = [states, "rollout", states, (base, "cpu"), "reference_logps_and_values", (base, "cpu"), "update"]
    assert seen == [3] * weights * bool(option) + ["rollout"] + 2 * (step + [states, "validate", states])


def test_the_memory_plan_of_a_run(capsys, monkeypatch):
    """(--slots, GB, longest dialogue, slots, engine stays?): a slot takes 128 bytes a position; at least 64 slots."""
    available = Mock(side_effect=[6e4, *[3e9] * 2, 6e4])  # of check_model, the plan (device and host), the engine
    error = refused(capsys, "--out other", {"support.memory.device_memory": available})
    assert " GiB, more than is free: lower --slots or --max_new_tokens" in error
    plans = ("auto", 3, 100, 500, True), ("auto", 4, 100_000, 137, False), ("auto", 1, 100_000, 64, False)
    for given, gigabytes, longest, slots, keeps in (*plans, (600, 3, 100, 500, True)):
        run = train.build_run(read_config(f"--dialogues 500 --slots {given}"))
        monkeypatch.setattr("support.memory.device_memory", lambda device: gigabytes * 1e9)
        assert memory.plan_run(run, longest) == keeps and run.config.slots == slots


def test_rewards_of_a_run():
    """The options are arguments of reward.py:reward; tests/test_reward.py is about these."""
    options = "--attempt_discount 0.5 --unboxed_reward -0.25 --wrong_reward -0.0625 --repeat_penalty 0.125"
    run = launch(f"{options} --steps 1 --dialogues 128")
    (dialogues,) = run.rollouts
    expected = [sum(reward(attempts, "", 0.5, -0.25, -0.0625, 0.125)) for attempts in dialogues.attempts]
    assert dialogues.reward_D.tolist() == expected and len(set(expected)) > 5
    assert run.rows[0]["reward"] == dialogues.reward_D.mean().item()


def test_a_group_has_no_critic():
    result, calibrated = launch("--group_size 4 --lr 1e-2"), launch("--group_size 4 --lr 1e-2 --calibrated --out other")
    assert not same(result.run.actor.state_dict(), calibrated.run.actor.state_dict())
    assert not [name for name in result.rows[0] if "critic" in name or "value" in name or "explained" in name]
    assert "policy_loss" in result.rows[0] and [*result.run.checkpointed] == ["actor", "actor_optimizer"]
    assert not same(result.run.actor.state_dict(), result.run.reference.state_dict())
    for dialogues in result.rollouts:
        assert len(dialogues.tokens_DT.unique(dim=0)) > 2  # of two questions: each dialogue has its own random numbers


@pytest.mark.parametrize("low, high", [(1, 1), (2, 3)])
def test_attempts_allowed(low, high):
    result = launch(f"--min_attempts {low} --max_attempts {high}")
    allowed = {n for dialogues in result.rollouts for n in dialogues.allowed_D.tolist()}
    assert allowed == set(range(low, high + 1))
    for dialogues in result.rollouts:
        assert (dialogues.used_D <= dialogues.allowed_D).all()
        for tokens, length, n in zip(dialogues.tokens_DT, dialogues.prompt_length_D, dialogues.allowed_D):
            assert f"You have {n} attempts to answer" in result.run.chat.decode(tokens[:length].tolist())
    assert len(result.rows[0]["accuracy_by_attempt"]) == high


def test_long_questions_are_left_out_and_counted():
    run = train.build_run(read_config(""))
    lengths = [len(run.chat.prompt(problem.question, 3)) for problem in data.load("questions.jsonl")]
    limit = sorted(lengths)[7]
    fitting = sum(length <= limit for length in lengths)
    result = launch(f"--max_prompt_tokens {limit} --steps 3")
    assert f"left out {12 - fitting} questions with prompts of more than {limit} tokens" in result.output
    assert fitting < 12 and f"parameters, {fitting} questions" in result.output
    assert max(int(dialogues.prompt_length_D.max()) for dialogues in result.rollouts) == limit


@pytest.mark.parametrize("options", ["", "--group_size 2 --drop_uniform_groups", "--drop_truncated"])
def test_a_step_whose_rewards_are_all_equal_trains_nothing_and_is_noted(options):
    result = launch(f"{options} --max_new_tokens 1", report=True)  # no token closes a box: all fail alike
    assert [(row["reward"], row["learned"], "policy_loss" in row) for row in result.rows] == [(-1, 0, False)] * 2
    assert same(result.run.actor.state_dict(), result.run.reference.state_dict())
    if "group" not in options:  # the critic is still the base model with a head of zeros
        weights = result.run.critic.state_dict()
        assert not weights.pop("score.weight").any() and not weights.pop("score.bias").any()
        assert same(weights, result.run.reference.base_model.state_dict())
    assert "warning: 2 of 2 steps had nothing to learn from: equal rewards" in result.output


def test_drop_uniform_groups_learns_only_from_groups_with_different_rewards():
    seen = []
    watched = in_call("train.reference_logps_and_values", 1, lambda work: seen.append(work.args[2]) or work(), last=99)
    result = launch("--group_size 2 --drop_uniform_groups --steps 3", watched)
    for row, written, training_set in zip(result.rows, result.rollouts, seen, strict=True):
        kept = [d for d in range(8) if written.reward_D[d] != written.reward_D[d ^ 1]]  # the other of its group
        assert row["learned"] == len(kept) / 8 and training_set.attempts == [written.attempts[d] for d in kept]
        assert torch.equal(training_set.tokens_DT, written.tokens_DT[kept])
    assert {row["learned"] for row in result.rows} - {0, 1}  # otherwise this run shows nothing


def test_evaluation_during_training_is_greedy_and_changes_no_bit():
    """Every second step, with the weights after it, about the first two validation questions."""
    asked, original = [], train.evaluate

    def watched(model, chat, problems, allowed, config):
        asked.append(([problem.question for problem in problems], allowed))
        return original(model, chat, problems, allowed, config)

    options = "--steps 4 --max_attempts 3 --eval_attempts 3 --lr 1e-2"
    without = launch(f"{options} --out without")
    options += " --eval_every 2 --validation_data held_out.jsonl --eval_limit 2"
    run = launch(options, {"train.evaluate": watched})
    assert asked == [(["Another 0", "Another 1"], [3])] * 2
    added = [f"validation_{name}" for name in ("accuracy", "accuracy_first", "repeated")]
    assert [set(added) <= set(row) for row in run.rows] == [False, True, False, True]
    last = train.validate(run.run, data.load("held_out.jsonl")[:2])
    assert {name: run.rows[-1][name] for name in added} == last and 0 <= last[added[1]] <= last[added[0]] <= 1
    assert [{k: v for k, v in row.items() if k not in added} for row in run.rows] == without.rows
    assert same(run.run.actor.state_dict(), without.run.actor.state_dict())


def test_learning_rates_rise_and_fall():
    result = launch("--steps 5 --minibatches 2 --epochs 2 --lr_warmup 0.4 --lr 1e-3 --critic_lr 1e-2")
    shares = []  # of the peak, for the next optimiser step: 20 in all, 8 of them rising
    for done in (4, 8, 12, 16, 20):
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (done - 8) / 12))
        shares.append(done / 8 if done <= 8 else cosine)
    assert [row["lr"] for row in result.rows] == pytest.approx([1e-3 * share for share in shares])
    assert [row["critic_lr"] for row in result.rows] == pytest.approx([1e-2 * share for share in shares])
    states = [state for optimizer in result.run.optimizers for state in optimizer.states.values()]
    assert {int(state["step"]) for state in states} == {20} and shares[1] == 1 and shares[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_sampling_and_training_share_the_temperature(temperature):
    """One minibatch and one epoch: nothing has moved yet, so every ratio is 1 and the KL to the base model 0."""
    (row,) = launch(f"--temperature {temperature} --steps 1 --minibatches 1 --lr_warmup 0").rows
    assert row["approx_kl"] == pytest.approx(0, abs=1e-7) and row["kl"] == pytest.approx(0, abs=1e-7)
    assert row["clipfrac"] == 0 and row["policy_loss"] == pytest.approx(0, abs=1e-5)


# -------------------- Mistakes: one sentence on stderr, exit code 2, nothing done yet
MISTAKES = """
--preset huge              | --preset must be one of paper, miniature, smollm2
--lr nan                   | --lr must be a number greater than 0, not nan
--lr inf                   | --lr must be a number greater than 0, not inf
--temprature 2             | there is no option --temprature: did you mean --temperature?
--foo 4                    | there is no option --foo, see --help
--gamma 1.5                | --gamma must lie between 0 and 1, not 1.5
--drop_uniform_groups true | --drop_uniform_groups must be false without --group_size
--group_size 3             | --group_size must divide --dialogues 8, not 3
--calibrated               | --calibrated must be false without --group_size
--normalise mean           | --normalise must be one of none, centre, std, not mean
--wrong_reward 1           | --wrong_reward must lie between -1 and 0, not 1.0
--feedback kind            | unknown feedback 'kind': choose one of paper, uncounted, uninformative
--seed -1                  | --seed must be a number, 0 or more, not -1
--min_attempts 4           | --max_attempts must be at least --min_attempts, not 3
--minibatches 9            | --minibatches must be at most --dialogues, not 9
--data gsm9k-train         | no data set is called 'gsm9k-train': expected a path that ends in
--data missing.jsonl       | No such file or directory: 'missing.jsonl'
--eval_data shared.jsonl   | 1 questions of --eval_data are in --data as well, the first: 'Question 0'
--model ./no/such/folder   | there is no model folder ./no/such/folder
--dtype float16            | --dtype must be one of auto, float32, bfloat16, not float16
--device abacus            | device 'abacus' is not available here
--device meta              | device 'meta' is not available here: expected auto, cpu, cuda or mps
--chat_template llama4     | --chat_template must be one of chatml, llama3, auto, not llama4
--chat_template llama3     | the tokenizer does not know the token <|eot_id|> of the chat template 'llama3'
--max_prompt_tokens 5      | has a prompt of at most 5 tokens
--max_new_tokens 500       | exceed the model's 512 usable positions
--eval_every 1 --validation_data shared.jsonl | 1 questions of --validation_data are in --data as well
--eval_data long.jsonl     | exceed the model's 512 usable positions
--log_to tensorboard       | --log_to tensorboard needs a package that is not installed
--log_to wandb             | --log_to wandb needs a package that is not installed
--out questions.jsonl      | the output folder questions.jsonl cannot be written (File exists): choose another --out
"""


@pytest.mark.parametrize("case", MISTAKES.strip().splitlines())
def test_mistakes_are_one_sentence(case, capsys, monkeypatch):
    options, sentence = re.fullmatch(r"(.*?) *\| (.*)", case).groups()
    for module in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    assert sentence in refused(capsys, options) and not Path("run").exists()


def test_zero_is_refused_for_every_count(capsys):
    for field in fields(Config):
        if field.type in (int, int | None) and field.name != "seed":
            assert f"--{field.name} must be a number greater than 0, not 0" in refused(capsys, f"--{field.name} 0")


# -------------------- Logs elsewhere
def test_tensorboard(monkeypatch):
    written = []
    writer = SimpleNamespace(add_scalar=lambda *scalar: written.append(scalar))
    module = SimpleNamespace(SummaryWriter={"run": writer}.get)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    rows = launch("--log_to tensorboard").rows
    numbers = [(name, x, row["step"]) for row in rows for name, x in row.items() if isinstance(x, int | float)]
    assert [scalar for scalar in written if "second" not in scalar[0]] == numbers


def test_wandb(monkeypatch):
    """A resumed run has the id of its first part, which wandb keeps in the name of its folder."""
    calls = []

    def init(dir, id, **options):
        Path(dir, f"wandb/run-20260101_000000-{id or 'abc123'}").mkdir(parents=True, exist_ok=True)
        calls.append(options | {"id": id})

    module = SimpleNamespace(init=init)
    module.log = lambda row, step: calls.append((step, {k: x for k, x in row.items() if "second" not in k}))
    monkeypatch.setitem(sys.modules, "wandb", module)
    result = launch("--log_to wandb")
    assert calls[0]["name"] == "run" and calls[0]["config"] == asdict(result.run.config)
    assert calls[1:] == [(row["step"], row) for row in result.rows]
    launch("--resume --out run")
    assert (calls[0]["id"], calls[-1]["id"], calls[-1]["resume"]) == (None, "abc123", "allow")
