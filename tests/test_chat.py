"""Chat templates, the models' own ones too, feedback of all kinds, and text that looks like control tokens."""

import copy
import re
from types import SimpleNamespace

import pytest
from conftest import small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AddedToken, PreTrainedTokenizerFast

from data import miniature
from data.chat import CHAT_TEMPLATES, SYSTEM, Chat, own_template, prompt_text

TOKENIZER = miniature.build_tokenizer(miniature.draw_riddles("train")[:200])  # hypothesis takes no fixture
SPECIAL = TOKENIZER.backend_tokenizer.to_str()
NOT_SPECIAL = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer.from_str(SPECIAL.replace('"special":true', '"special":false'))
)
WRONG = SimpleNamespace(text="So \\boxed{7}", answer="7")
MODEL = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))

# -------------------- The models' own templates
# The shape of what the families publish, in our words. Then the control tokens, and what is expected of a dialogue with
# the system text S, question Q and feedback F, before and after the first attempt.
LLAMA = """{{ bos_token }}{% for m in messages %}{% if loop.first %}<|start_header_id|>system<|end_header_id|>

Today Date: {{ date_string if date_string is defined else strftime_now("%d %b %Y") }}

{{ m.content | trim }}<|eot_id|>{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
CHATML = """{% if messages[0].role != "system" %}<|im_start|>system
You are helpful<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
GEMMA = """{{ bos_token }}{% for m in messages %}
{%- if m.role == "system" %}{{ raise_exception("no system role") }}{% endif %}
{%- if (m.role == "user") != (loop.index0 % 2 == 0) %}{{ raise_exception("roles must alternate") }}{% endif -%}
<start_of_turn>{{ "model" if m.role == "assistant" else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
PHI = """{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
MISTRAL = """{% if messages[0].role == "system" %}
{%- set first = messages[0].content + "\n\n" %}{% set rest = messages[1:] %}
{%- else %}{% set first = "" %}{% set rest = messages %}{% endif -%}
<s>{% for m in rest %}{% if m.role == "user" %}[INST] {{ first if loop.first }}{{ m.content }} [/INST]
{%- elif m.role == "assistant" %} {{ m.content }} </s>{% else %}{{ raise_exception("only user and assistant") }}
{%- endif %}{% endfor %}"""
PHI_4 = """{% for m in messages %}{% if m.role == "assistant" %}{{ m.content }}<|end|>{% else -%}
<|{{ m.role }}|>{{ m.content }}<|end|>{% if m.role == "user" %}<|assistant|>{% endif %}{% endif %}{% endfor %}"""
TURNS = (
    """{% for m in messages if m.role != "system" %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"""
)
HOISTING = """{% for m in messages if m.role == "system" %}{{ m.content }}{% endfor %}""" + TURNS
LLAMA_S = "<|start_header_id|>system<|end_header_id|>\n\n"
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
FAMILIES = {
    "Llama 3": (
        LLAMA,
        "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>",
        f"<|begin_of_text|>{LLAMA_S}Today Date: 26 Jul 2024\n\nS<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>{ASSISTANT}",
        f"<|eot_id|>{LLAMA_S}F<|eot_id|>{ASSISTANT}",
    ),
    "Qwen, SmolLM": (
        CHATML,
        "",
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n<|im_start|>system\nF<|im_end|>\n<|im_start|>assistant\n",
    ),
    "Gemma": (
        GEMMA,
        "<bos> <start_of_turn> <end_of_turn>",
        "<bos><start_of_turn>user\nS\n\nQ<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>\n<start_of_turn>user\nF<end_of_turn>\n<start_of_turn>model\n",
    ),
    "Phi": (
        PHI,
        "<|system|> <|user|> <|assistant|> <|end|>",
        "<|system|>\nS<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\n",
        "<|end|>\n<|system|>\nF<|end|>\n<|assistant|>\n",
    ),
    "Mistral": (MISTRAL, "<s> </s>", "<s>[INST] S\n\nQ [/INST]", "</s>[INST] F [/INST]"),
    **{
        f"system turns {what}": (
            template,
            "<|user|> <|assistant|> <|end|>",
            "<|user|>S\n\nQ<|end|><|assistant|>",
            "<|end|><|user|>F<|end|><|assistant|>",
        )
        for what, template in (("go to the top", HOISTING), ("are left out", TURNS), ("open no answer", PHI_4))
    },
}


def with_template(template: str | None, control: str):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.add_tokens([AddedToken(name, special=True) for name in control.split()], special_tokens=True)
    tokenizer.chat_template, tokenizer.bos_token = template, (control.split() or [None])[0]
    return tokenizer


@pytest.mark.parametrize("template, control, before, after", FAMILIES.values(), ids=FAMILIES)
def test_auto_is_the_models_own_template(template, control, before, after):
    tokenizer = with_template(template, control)
    own, before = own_template(tokenizer), re.sub(r"\bS\b", lambda _: SYSTEM.replace("{attempts}", "3"), before)
    assert prompt_text(own, "Q", 3) == before and own.feedback.replace("{feedback}", "F") == after
    chat = Chat(MODEL, tokenizer, "auto", "Wrong: {answer} it is not.")
    tokens = chat.prompt("Q", 3) + chat.encode("\\boxed{7}") + chat.feedback_after(-1, 2, WRONG, "5")
    expected = before + "\\boxed{7}" + after.replace("F", "Wrong: 7 it is not.")
    assert chat.decode(tokens) == expected and chat.decode([chat.turn_end]) == own.end
    assert chat.turn_end in chat.end_tokens and tokens.count(chat.turn_end) == expected.count(own.end)
    assert chat.feedback_after(chat.turn_end, 2, WRONG, "5") == chat.feedback_after(-1, 2, WRONG, "5")[1:]


def test_chatml_and_llama3_are_what_such_models_bring_along():
    assert own_template(with_template(CHATML, "")) == CHAT_TEMPLATES["chatml"]
    llama = own_template(with_template(LLAMA, FAMILIES["Llama 3"][1]))  # whose system turn has a date as well
    dated = llama.prompt.replace("Today Date: 26 Jul 2024\n\n", "")
    assert llama._replace(prompt=dated) == CHAT_TEMPLATES["llama3"]


REFUSED = {
    "there is none": None,
    "it raises": "{{ raise_exception('one question only') if messages | length > 2 }}{{ messages[0].content }}",
    "no control token ends a turn": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ",
}


@pytest.mark.parametrize("template", REFUSED.values(), ids=REFUSED)
def test_a_template_that_does_not_do_is_refused(template):
    with pytest.raises(ValueError, match="the tokenizer has no chat template of its own that can write"):
        Chat(MODEL, with_template(template, ""), "auto")


# -------------------- Text is text
CONTROL = st.sampled_from(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_<|im_end|>end|>", "assistant\n", "<|"])
TEXTS = st.lists(st.one_of(CONTROL, st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=5))).map("".join)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, NOT_SPECIAL], ids=["special", "only added"])
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(text=TEXTS)
def test_special_tokens_in_questions_and_answers_are_text(tokenizer, text):
    chat = Chat(MODEL, tokenizer, "chatml", "It is not {answer}, try again.")
    special = {*tokenizer.all_special_ids, *map(tokenizer.convert_tokens_to_ids, ("<|im_start|>", "<|im_end|>"))}
    wrong = SimpleNamespace(text=text, answer=text)
    for tokens, plain in (
        (chat.prompt(text, 2), chat.prompt("Q", 2)),
        (chat.feedback_after(-1, 1, wrong, "5"), chat.feedback_after(-1, 1, WRONG, "5")),
    ):
        assert [t for t in tokens if t in special] == [t for t in plain if t in special]
        assert text in chat.decode(tokens)


def test_a_text_without_special_tokens_is_encoded_as_it_is():
    chat, question = Chat(MODEL, TOKENIZER, "chatml"), "Where is < and | and im_end?"
    assert chat.prompt(question, 1) == chat.encode(prompt_text(CHAT_TEMPLATES["chatml"], question, 1))


# -------------------- Feedback
def too_high_or_low(attempts_left, attempt, gold):
    return f"{attempt.answer} is too {'high' if int(attempt.answer) > int(gold) else 'low'}; {attempts_left} left"


@pytest.mark.parametrize(
    "feedback, answer, words",
    [
        ("paper", "7", "Your answer is incorrect. You have 2 attempts left. Try an alternative."),
        ("uncounted", "7", "Your answer is incorrect. Try an alternative."),
        ("uninformative", "7", "Please reason step by step, and put your final answer within \\boxed{}"),
        ("No. {attempts} more.", "7", "No. 2 more."),
        ("Not {answer}: \\frac{1}{2} {", "7", "Not 7: \\frac{1}{2} {"),
        ("Not \\boxed{answer}, not {{answer}}{attempts}", "{attempts}", "Not \\boxed{{attempts}}, not {{attempts}}2"),
        ("答案错误,还剩{attempts}次机会 ", "7", "答案错误,还剩2次机会 "),
        ("{answer} is wrong", None, " is wrong"),
        (too_high_or_low, "7", "7 is too high; 2 left"),
    ],
)
def test_filled_feedback(feedback, answer, words):
    chat = Chat(MODEL, TOKENIZER, "chatml", feedback)
    expected = f"<|im_end|>\n<|im_start|>system\n{words}<|im_end|>\n<|im_start|>assistant\n"
    tokens = chat.feedback_after(-1, 2, SimpleNamespace(answer=answer), "5")
    assert chat.decode(tokens) == expected and tokens == chat.encode(expected)


REFUSED_FEEDBACK = {
    "kind": "unknown feedback 'kind': choose one of paper, uncounted, uninformative, or write a sentence",
    "错误{attempt}": "has {attempt}: it may have {attempts} and {answer}",
    "{Attempts } left": "has {Attempts }: it may have {attempts} and {answer}",
}


@pytest.mark.parametrize("feedback, sentence", REFUSED_FEEDBACK.items())
def test_feedback_that_is_refused(feedback, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Chat(MODEL, TOKENIZER, "chatml", feedback)


def test_a_base_for_other_words(tmp_path, capsys, monkeypatch):
    """The words of the feedback are few tokens of its tokenizer, and its dialogues hold them."""
    words, taught = "Nope, {attempts} more, not {answer}.", []
    monkeypatch.setattr(miniature, "fine_tune", lambda model, dialogues, *_, **__: taught.extend(dialogues))
    monkeypatch.setattr(miniature, "save_model", lambda model, tokenizer, out: taught.append(tokenizer))
    miniature.main(["--out", str(tmp_path / "base"), "--steps", "2", "--batch", "8", "--feedback", words])
    *dialogues, tokenizer = taught
    chat = Chat(small_model(tokenizer), tokenizer, "chatml", words)
    assert len(chat.feedback_after(-1, 1, WRONG, "5")) < 15 < len(Chat(MODEL, TOKENIZER, "chatml", words).encode(words))
    said = r"\\boxed\{(\d+)\}<\|im_end\|>\n<\|im_start\|>system\nNope, \d more, not \1\."
    assert any(re.search(said, chat.decode(tokens)) for tokens, _ in dialogues)
    with pytest.raises(SystemExit):
        miniature.main(["--out", str(tmp_path / "base"), "--feedback", "kind"])
    assert "unknown feedback 'kind'" in capsys.readouterr().err
