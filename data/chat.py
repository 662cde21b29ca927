"""The dialogue as text: one chat template per model kind, with the paper's wording, and its tokens.

system      the task, and how many attempts are allowed
user        the question
assistant   first attempt                     <- written by the model
system      "Your answer is incorrect. ..."   <- feedback, only after a wrong attempt
assistant   second attempt                    <- written by the model
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatTemplate:
    """How one kind of model writes a chat turn. `turn` is formatted with `role` and `content`."""

    begin: str  # before the first turn
    turn: str
    answer: str  # opens the model's turn
    end: str  # the special token that ends a turn


CHAT_TEMPLATES = {
    "chatml": ChatTemplate("", "<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>"),
    "llama3": ChatTemplate(
        "<|begin_of_text|>",
        "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
}

# The paper's wording (the authors' code), "1 attempts" included.
SYSTEM = (
    "Please reason step by step, and put your final answer within \\boxed{{}}. You have {attempts} attempts to answer "
    "the questions, and you should provide the full reasoning steps in each attempt."
)
# What a wrong attempt is answered with: the paper's wording, the same without the number of attempts left, and a
# control that is as long as the paper's (in the miniature as many tokens) and does not tell that the attempt was wrong.
FEEDBACKS = {
    "paper": "Your answer is incorrect. You have {attempts} attempts left. Try an alternative.",
    "uncounted": "Your answer is incorrect. Try an alternative.",
    "uninformative": "Please reason step by step, and put your final answer within \\boxed{{}}",
}


def prompt_text(template: ChatTemplate, question: str, attempts: int) -> str:
    """Everything before the first attempt: system turn with the number of attempts, question, opened answer turn."""
    system = template.turn.format(role="system", content=SYSTEM.format(attempts=attempts))
    return template.begin + system + template.turn.format(role="user", content=question) + template.answer


def feedback_text(template: ChatTemplate, attempts_left: int, feedback: str = "paper") -> str:
    """Everything between a wrong attempt and the next one, from the token that ends the attempt's turn. `feedback` is
    one of FEEDBACKS."""
    closing = template.turn[template.turn.index(template.end) :]
    content = FEEDBACKS[feedback].format(attempts=attempts_left)
    return closing + template.turn.format(role="system", content=content) + template.answer


class Chat:
    """A chat template and a feedback bound to a model's tokenizer: the only place where text becomes tokens or tokens
    text.

    Raises ValueError for an unknown template or feedback, or a template whose special token the tokenizer lacks.
    """

    def __init__(self, model, tokenizer, template: str, feedback: str = "paper"):
        if template not in CHAT_TEMPLATES:
            raise ValueError(f"unknown chat template {template!r}: choose one of {', '.join(CHAT_TEMPLATES)}")
        if feedback not in FEEDBACKS:
            raise ValueError(f"unknown feedback {feedback!r}: choose one of {', '.join(FEEDBACKS)}")
        self.tokenizer, self.template, self.feedback = tokenizer, CHAT_TEMPLATES[template], feedback
        end = self.encode(self.template.end)
        if len(end) != 1:
            raise ValueError(
                f"the tokenizer does not know the token {self.template.end} of the chat template {template!r}: "
                f"choose another of {', '.join(CHAT_TEMPLATES)}"
            )
        self.turn_end = end[0]
        eos = model.generation_config.eos_token_id if model.generation_config else None
        self.end_tokens = {self.turn_end, tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
        vocabulary = tokenizer.get_vocab().items()
        self.brace_tokens = {token for text, token in vocabulary if "}" in text or text == "<0x7D>"}
        self.forced = {}  # tokens of the feedback, by attempts left

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, special tokens where the text spells them, none added."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt(self, question: str, attempts: int) -> list[int]:
        return self.encode(prompt_text(self.template, question, attempts))

    def feedback_after(self, last_token: int, attempts_left: int) -> list[int]:
        """The forced tokens after an attempt; a turn that the model ended itself is not ended twice."""
        if attempts_left not in self.forced:
            self.forced[attempts_left] = self.encode(feedback_text(self.template, attempts_left, self.feedback))
        return self.forced[attempts_left][last_token == self.turn_end :]

    def text(self, tokens: list[int]) -> str:
        """The text of tokens exactly as they stand, special tokens included."""
        return self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
