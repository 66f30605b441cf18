"""Messages, USP's system prompt and chat template, and which tokens are trained on.

A user simulator is a chat model with the roles exchanged: it reads a profile in the system message
and writes the *user* turns. The published weights depend on the exact strings below (paper
arXiv 2502.18968, release wangkevin02/USP).
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import NotRequired
from weakref import WeakKeyDictionary

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from usp_lab.errors import UspError


class Message(TypedDict):
    """One turn: ``role`` is "system", "user" or "assistant".

    ``meta`` says what a scripted speaker did.
    """

    role: str
    content: str
    meta: NotRequired[dict]


class Utterance(str):
    """A scripted speaker's text that carries what it did: goal asked or met, kind of reply, ..."""

    def __new__(cls, text: str, meta: dict | None = None) -> "Utterance":
        self = super().__new__(cls, text)
        self.meta = meta or {}
        return self


_CLOSING = re.compile(
    r"\b(th(?=\w*k)[ank]{2,5}s?|thx|ta|cheers|bye|goodbye|(good|gd) day|(?<!a )(good|gd) night|never ?mind|nvm|"
    r"that'?s (all|everything|it|me)(?! i'?( ?a?m\b|ve\b| (want|ask|need|mean)\b|ll\b))|"
    r"that (is|will be) (all|everything)|all (set|sorted|good|done)|me (sorted|done)|done here|"
    r"much obliged|most grateful|i bid you|take care|see you|forget (it|i asked)|(don'?t|do not) bother|"
    r"leave it( there| at that)?(?=\W*$)|(had|'?d) better (leave|turn|end|get going)|call it a day|waste of time|"
    r"(i|have to) give up|come back (for|to) the rest|on another (day|occasion)|no (use|luck)|nothing else|"
    r"(i'?ll|i will|i shall|i must) (leave|look it up|figure|stop here|find it|call someone|go (and|n) search|"
    r"ask (some\w*|a friend|my|else\w*)|try (some\w*|else\w*)|make other|trouble|return|take|consult|telephone)|"
    r"i'?m (off|out|done)|will have to (do|wait|suffice)|called away|time presses|"
    r"enough for (now|today)|(got to|gotta|must|have to|need to) (go|run|dash|leave it))\b",
    re.IGNORECASE,
)
_REQUEST = re.compile(
    r"\?|\b(how|which|why|where|(what|wat) (is|are|do|does|should|would|about|abt|can|if|else)|what'?s|"
    r"(can|could|would) (you|u)|tell me|should i|do i|is there|are there)\b",
    re.IGNORECASE,
)


def is_closing(text: str) -> bool:
    """Tell whether a user turn says goodbye: a closing phrase, no request, 20 words at the most.

    A rule, not a model: it is the stop rule for simulators without an end token; `01_data` reports
    its precision and recall.
    """
    asks = _REQUEST.search(text)
    return bool(_CLOSING.search(text)) and not asks and len(text.split()) <= 20


SYSTEM_PROMPT = (
    "You are engaging in a conversation with an AI assistant. your profile is: \n{profile}.\n"
    " You can say anything you want, either based on the profile or something brand new.\n\n"
)
_PROFILE = re.compile(
    r"\A\s*You are engaging in a conversation with an AI assistant\. "
    r"[Yy]our profile is: ?\n?(.*)\.\n"
    r" ?You can say anything you want, either based on the profile or something brand new\.\s*\Z",
    re.DOTALL,
)

# A dialogue that ends may carry one last user turn that is this token alone, as in UserLM
# (arXiv 2510.06552). USP as published has no such token: it is an option of `train_sft`.
END_TOKEN = "<|end_of_dialogue|>"
SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
)

_HEADER = "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"


def chat_template(speaker: str = "user", training: bool = False) -> str:
    """Return the Llama-3 chat template in which the generation prompt opens a ``speaker`` header.

    Args:
        speaker: "user" for a simulator (USP's published template), "assistant" for an assistant, "both"
            for a base model that learns both sides (its prompt opens a user header).
        training: mark the speaker's content and its ``<|eot_id|>`` with ``{% generation %}``,
            on which TRL's ``assistant_only_loss`` trains. Both forms render to the same text.
    """
    if speaker not in ("user", "assistant", "both"):
        raise UspError(f"speaker must be 'user', 'assistant' or 'both', not {speaker!r}")
    turn = "{{ message['content'] | trim + '<|eot_id|>' }}"
    if training:
        marked = "{% generation %}" + turn + "{% endgeneration %}"
        whose = "{% if message['role'] == '" + speaker + "' %}"
        if speaker == "both":
            whose = "{% if message['role'] != 'system' %}"
        turn = whose + marked + "{% else %}" + turn + "{% endif %}"
    opens = "assistant" if speaker == "assistant" else "user"
    opened = "{{ '<|start_header_id|>" + opens + "<|end_header_id|>\\n\\n' }}"
    return (
        "{{ bos_token }}{% for message in messages %}{{ " + _HEADER + " }}" + turn + "{% endfor %}"
        "{% if add_generation_prompt %}" + opened + "{% endif %}"
    )


def system_message(profile: str) -> Message:
    """Return the system message that gives a simulator its profile, as in USP's training data."""
    return {"role": "system", "content": SYSTEM_PROMPT.format(profile=profile)}


def read_profile(system_prompt: str) -> str | None:
    """Return the profile inside a USP system prompt, or None where there is none.

    Inverse of `system_message`; reads "your" and "Your", and a prompt that a template has trimmed.
    """
    found = _PROFILE.match(system_prompt)
    return found.group(1) if found else None


def profile_of(messages: Sequence[Message]) -> str | None:
    """Return the profile that a dialogue's system message tells, None where it tells none."""
    return read_profile(next((m["content"] for m in messages if m["role"] == "system"), ""))


def with_profile(messages: Sequence[Message], profile: str | None) -> list[Message]:
    """Return messages behind the profile's system message; None gives none (the `plato` arm)."""
    turns = [m for m in messages if m["role"] != "system"]
    return turns if profile is None else [system_message(profile), *turns]


def broken_up(text: str, special: re.Pattern[str]) -> str:
    """Return a text with a space in each special token it spells: "<|eot_id|>" -> "< |eot_id|>"."""
    return special.sub(lambda token: f"{token[0][:1]} {token[0][1:]}", text)


_SPECIAL: WeakKeyDictionary = WeakKeyDictionary()  # tokenizer -> (its size, pattern)


def without_special_tokens(tokenizer, messages: Sequence[Message]) -> list[Message]:
    """Return messages in which no content spells a special token (see `broken_up`).

    People and models may write anything; only a template ends a turn or changes the speaker. A turn
    that is `END_TOKEN` alone is meant.
    """
    size, pattern = _SPECIAL.get(tokenizer, (0, None))
    if size != len(tokenizer):
        names = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        names |= set(tokenizer.all_special_tokens)
        size, pattern = len(tokenizer), re.compile("|".join(map(re.escape, sorted(names))) or "$^")
        _SPECIAL[tokenizer] = size, pattern
    return [
        {**m, "content": broken_up(m["content"], pattern)} if m["content"] != END_TOKEN else m
        for m in messages
    ]


def token_ids(tokenizer, messages: Sequence[Message], generate: bool = False) -> list[int]:
    """Return the token ids of rendered messages, one BOS at the most.

    Args:
        tokenizer: with a chat template.
        messages: none give no ids, since templates refuse to render nothing.
        generate: open the speaker's header.

    Raises:
        UspError: ``generate`` without a message; a dialogue is opened from a system message.
    """
    if not messages:
        if generate:
            raise UspError("no message to go on from; open a dialogue with a system message")
        return []
    out = tokenizer.apply_chat_template(
        without_special_tokens(tokenizer, messages),
        add_generation_prompt=generate,
        tokenize=True,
        return_dict=True,
    )
    return list(out["input_ids"])


def trained_mask(
    tokenizer, messages: Sequence[Message], speaker: str = "user"
) -> tuple[list[int], list[int]]:
    """Return (token ids, mask), the mask 1 where the loss is taken.

    That is on the speaker's content and its ``<|eot_id|>``.
    """
    out = tokenizer.apply_chat_template(
        without_special_tokens(tokenizer, messages),
        chat_template=chat_template(speaker, training=True),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return list(out["input_ids"]), list(out["assistant_masks"])


def cut_to_turns(
    tokenizer, messages: Sequence[Message], max_length: int
) -> tuple[list[Message], int]:
    """Cut a dialogue after its last whole turn that fits ``max_length`` tokens.

    Returns:
        (messages kept, how many were cut). What is kept may have no user turn: drop and count it.
    """

    def length(n: int) -> int:
        return len(token_ids(tokenizer, messages[:n]))

    prefixes = range(len(messages) + 1)  # a longer prefix never has fewer tokens, so bisect
    n = bisect_right(prefixes, max_length, key=length) - 1
    return list(messages[:n]), len(messages) - n


def check_template(tokenizer, path: str, speaker: str = "user") -> None:
    """Raise `UspError` unless the tokenizer's chat template opens a ``speaker`` header."""
    if not tokenizer.chat_template:
        raise UspError(
            f"{path} has no chat template; add chat_template.jinja "
            f"(usp_lab.chat.chat_template({speaker!r}) is the published one) "
            "or load a checkpoint that has one"
        )
    probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    closed, opened = (
        tokenizer.apply_chat_template(probe, tokenize=False, add_generation_prompt=flag)
        for flag in (False, True)
    )
    if speaker not in opened[len(closed) :]:
        raise UspError(
            f"{path}: the chat template's generation prompt opens {opened[len(closed) :]!r}, "
            f"not a {speaker} header; this checkpoint does not speak as the {speaker}"
        )
