"""Which models are supported: tiny random ones of transformers' families either train as they should, or are refused in
one sentence. docs/scale.md lists the families of the first kind."""

import copy
import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny_runs import launch, refused
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import evaluate
from data.chat import Chat
from ppo import action_logps
from reward import RULES
from rollout import rollout
from support.check import check_fit, check_model

pytestmark = pytest.mark.usefixtures("inputs")
PAGE = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
FULL, SLIDING = ["full_attention"] * 2, ["full_attention", "sliding_attention"]
LONGROPE = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[4.0] * 4)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64)
LLAMA3 = YARN | dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0)
STATE, WINDOW, ROPE = "some layers keep a state", "some layers do not see all of", "are encoded by the longest dialogue"
FAILED, DIFFER = "a short dialogue ended with", "differ from the model's own"

ORDINARY = """apertus arcee bitnet cohere ernie4_5 ernie4_5_moe flex_olmo gemma glm glm4 glm4_moe gpt2 gpt_bigcode
gpt_neox granite granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe llama minimax_m2 mistral mixtral
nanochat olmo olmo2 olmoe persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 starcoder2"""
RIGHT = [  # family, and what is special about this configuration
    *[(name, {}) for name in ORDINARY.split()],
    *[(f"{name}", dict(layer_types=FULL)) for name in ("exaone4", "gemma3_text", "lfm2", "olmo3", "ministral")],
    ("cohere", dict(logit_scale=0.25)),
    ("cohere2", dict(sliding_window=512, layer_types=SLIDING)),  # wider than any dialogue
    ("gemma2", dict(attn_logit_softcapping=None, final_logit_softcapping=2.0)),
    ("granite", dict(logits_scaling=8.0, attention_multiplier=0.3, residual_multiplier=0.5, embedding_multiplier=3.0)),
    ("llama", dict(rope_parameters=LLAMA3)),
    ("llama", dict(rope_parameters=LONGROPE | dict(original_max_position_embeddings=256))),
    ("llama", dict(rope_parameters=YARN)),
    ("llama", dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=16)),
    ("mistral", dict(sliding_window=512)),
    ("mistral", dict(sliding_window=16, layer_types=FULL)),  # transformers takes it for Ministral, which reads these
    ("nanochat", dict(final_logit_softcapping=1.0)),
    ("qwen2", dict(sliding_window=16, use_sliding_window=False)),
]
REFUSED = [
    *[(name, {}, DIFFER) for name in ("bart", "bert", "bloom", "falcon", "mpt", "opt")],
    ("diffllama", {}, DIFFER),  # it changes keys and values between cache and attention
    *[(name, {}, FAILED) for name in ("deepseek_v3", "gptj", "jetmoe")],
    *[(name, {}, FAILED) for name in ("stablelm", "nemotron")],  # they do not hand the cache to the attention
    *[(name, {}, STATE) for name in "falcon_mamba jamba mamba qwen3_next recurrent_gemma rwkv xlstm".split()],
    ("lfm2", dict(layer_types=["conv", "full_attention"]), STATE),
    ("gemma2", dict(layer_types=FULL), "its attention has a soft cap"),
    ("gpt_oss", dict(layer_types=FULL), "its attention has sinks"),
    ("llama", dict(rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=4.0)), ROPE),
    ("llama", dict(rope_parameters=LONGROPE | dict(original_max_position_embeddings=130)), ROPE),
    *[(name, dict(sliding_window=16), WINDOW) for name in ("mistral", "mixtral", "phi3", "starcoder2")],
    ("cohere2", dict(sliding_window=16, layer_types=SLIDING), WINDOW),
    ("gemma3_text", dict(sliding_window=100), WINDOW),
    ("llama4_text", dict(attention_chunk_size=16), WINDOW),
    ("mistral", dict(sliding_window=130), WINDOW),
    ("phi3", dict(sliding_window=130, layer_types=FULL), WINDOW),  # it does not read layer_types
    ("qwen2", dict(sliding_window=16, use_sliding_window=True, max_window_layers=1), WINDOW),
]
SIZES = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
SIZES |= dict(n_embd=32, n_layer=2, n_head=4, n_positions=512, d_model=32, n_layers=2, n_heads=4, ffn_dim=64)
SIZES |= dict(num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
SIZES |= dict(n_group=1, topk_group=1, kv_lora_rank=16, q_lora_rank=16, max_position_embeddings=512, num_layers=2)
SIZES |= dict(decoder_layers=2, encoder_layers=2, decoder_ffn_dim=64, shared_expert_intermediate_size=32, state_size=8)
SIZES |= dict(head_dim=8)


def tiny_model(family: str, options: dict, tokenizer):
    """Two layers, with weights so large that attention is not uniform."""
    torch.manual_seed(0)
    known = CONFIG_MAPPING[family]().to_dict()
    tokens = dict(vocab_size=len(tokenizer), pad_token_id=None, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    sizes = {name: size for name, size in (SIZES | tokens).items() if name in known}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**sizes | options))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.15)
    return model


def saved(model, tokenizer, name: str = "model") -> str:
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    return f"--model {name} --max_new_tokens 200 "


@pytest.mark.parametrize("family, options", RIGHT, ids=str)
def test_a_supported_model_trains(family, options, tokenizer):
    """Before the first optimiser step, the policy is the one that wrote the dialogues, and the base model."""
    command = saved(tiny_model(family, options, tokenizer), tokenizer) + "--steps 1 --minibatches 1 --lr_warmup 0"
    rules = RULES._replace(reward=lambda attempts, gold, **_: [attempt.end % 7.0 for attempt in attempts])
    run = launch(f"{command} --max_new_tokens 40 --dialogues 4", {"train.RULES": rules})
    (row,) = run.rows
    assert row["approx_kl"] == pytest.approx(0, abs=1e-6) and row["kl"] == pytest.approx(0, abs=1e-6)
    assert row["grad_norm"] > 0 and row["critic_grad_norm"] > 0 and row["skipped"] == 0


@pytest.mark.parametrize("family, options, sentence", REFUSED, ids=str)
def test_another_is_refused_in_one_sentence(family, options, sentence, tokenizer, capsys):
    error = refused(capsys, saved(tiny_model(family, options, tokenizer), tokenizer))
    assert f"{family} is not supported: " in error and sentence in error


def test_the_page_lists_the_families():
    listed = re.search(r"These families [^:]*:\n(.*?)\.\n", PAGE, re.DOTALL)[1]
    assert listed.split() == sorted({family for family, _ in RIGHT})


def unscaled_logps(model, tokens_DT, sampled_DT, temperature):
    """As the update once was: without the scale that Granite's logits have."""
    logp_DTV = model.lm_head(model.base_model(tokens_DT).last_hidden_state).log_softmax(-1)[:, :-1]
    return logp_DTV.gather(-1, tokens_DT[:, 1:, None])[sampled_DT[:, 1:]][:, 0], None


def shifted_rollout(*args, **kwargs):
    dialogues = rollout(*args, **kwargs)
    dialogues.logp_DT[:, -10:] += 0.01
    return dialogues


@pytest.mark.parametrize(
    "scale, write, logps, other",
    [
        (1.0, rollout, unscaled_logps, None),
        (8.0, rollout, unscaled_logps, "update"),
        (8.0, shifted_rollout, action_logps, "rollout"),
    ],
)
def test_the_check_compares_rollout_and_update_with_the_model(scale, write, logps, other, tokenizer):
    model = tiny_model("granite", dict(logits_scaling=scale), tokenizer).eval()
    sentence = f"granite is not supported: log-probabilities of the {other} differ from the model's own, by "
    with pytest.raises(ValueError, match=sentence) if other else nullcontext():
        check_model(model, Chat(model, tokenizer, "chatml"), write, logps)
    assert model.config._attn_implementation == "sdpa"  # as it was


def test_the_check_is_fair_to_the_model(tokenizer):
    """Learned positions must cover the 32 by which a rollout overruns. An error in the feedback stays as it is."""
    model = tiny_model("gpt2", {}, tokenizer)
    assert check_fit(model, 100, 380) == 480
    with pytest.raises(ValueError, match="tokens 381 exceed the model's 480 usable positions"):
        check_fit(model, 100, 381)
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'strip'"):
        check_model(
            model, Chat(model, tokenizer, "chatml", lambda left, attempt, gold: attempt.answer.strip()), rollout
        )


# -------------------- Folders that are not the model that they seem to be
FOLDERS = [
    (lambda model, _: model.lm_head.weight[3].fill_(torch.nan), "lm_head.weight has values that are not finite"),
    (lambda _, own: own.add_tokens(["<a>", "<b>"]), "its tokenizer has {n2} tokens, but the model embeds {n}"),
    (lambda model, _: delattr(model.lm_head, "weight"), "loaded: 1 of its weights are missing, lm_head.weight"),
]


@pytest.mark.parametrize("damage, sentence", FOLDERS)
@torch.no_grad()
def test_a_damaged_model_is_neither_trained_nor_evaluated(damage, sentence, tokenizer, capsys):
    sentence = sentence.format(n=len(tokenizer), n2=len(tokenizer) + 2)
    model, tokenizer = tiny_model("llama", {}, tokenizer), copy.deepcopy(tokenizer)
    damage(model, tokenizer)
    assert sentence in refused(capsys, saved(model, tokenizer))
    with pytest.raises(SystemExit):
        evaluate.main("--model model --data held_out.jsonl --max_new_tokens 40 --device cpu --out evaluated".split())
    assert sentence in capsys.readouterr().err and not Path("evaluated/results.json").exists()


def test_a_folders_own_code_is_not_run(tokenizer, capsys):
    saved(tiny_model("llama", {}, tokenizer), tokenizer)
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    Path("model/own.py").write_text("open('it_ran', 'w')")
    assert "the model model cannot be loaded: " in refused(capsys, "--model model") and not Path("it_ran").exists()


def test_a_run_and_a_base_that_was_not_built(capsys):
    launch("--steps 1")
    assert "run is the folder of a run: its model is run/model" in refused(capsys, "--model run --out other")
    for name in ("runs/smollm2/base", "runs/mine"):
        error = refused(capsys, f"--model {name} --out other")
        assert f"there is no model folder {name}: give a folder with a config.json, or a hub name" in error
