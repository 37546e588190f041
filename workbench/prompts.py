"""What people hand in as a prompt, brought to token ids and checked. Knows a tokenizer, not the engine."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from workbench.engine.plan import Ints

_LATER = {
    "multi_modal_data": "images and other modalities are not available yet: pass text or token ids",
    "mm_processor_kwargs": "images and other modalities are not available yet: pass text or token ids",
    "encoder_prompt": "encoder-decoder models are not available yet: pass a plain prompt",
    "decoder_prompt": "encoder-decoder models are not available yet: pass a plain prompt",
    "prompt_embeds": "prompt embeddings are not available yet: pass token ids",
}
_KNOWN = ("prompt", "prompt_token_ids", "cache_salt")


Words = tuple[tuple[int, ...], ...]  # token ids of each


class Prompt(NamedTuple):
    text: str | None
    token_ids: Ints  # [n]
    cache_salt: str | None


def many(prompts: Any) -> list[Any]:
    """One prompt or several, as a list; a list of ints is one prompt."""
    if isinstance(prompts, str | Mapping | np.ndarray):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise TypeError(f"a prompt is a str, a list of token ids or a dict, not {type(prompts).__name__}")
    if prompts and all(isinstance(item, int | np.integer) for item in prompts):
        return [prompts]
    return list(prompts)


def read_prompt(prompt: Any, tokenizer: Any | None) -> Prompt:
    """A prompt in any of its forms as token ids.

    Raises:
        TypeError: it has a form nobody knows.
        ValueError: it is empty, asks for what is not available, or is text and there is no tokenizer.
    """
    text, token_ids, salt = _parts(prompt)
    if token_ids is None:
        if tokenizer is None:
            raise ValueError("the engine has no tokenizer (skip_tokenizer_init): pass prompt_token_ids")
        # Of an empty text some tokenizers make nothing, others the token that begins every text.
        token_ids = encode(text, tokenizer) if text else []
    ids = _to_array(token_ids)
    if not len(ids):
        raise ValueError("the prompt is empty: pass at least one token")
    return Prompt(text, ids, salt)


def encode(text: str, tokenizer: Any, *, add_special_tokens: bool = True) -> Any:
    """Token ids of a text; ValueError where it is not Unicode."""
    try:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    except (TypeError, UnicodeError) as error:  # how tokenizers refuse what is not Unicode
        raise ValueError(
            f"the tokenizer cannot encode the prompt {reprlib.repr(text)} ({error}): if it holds half of a"
            " surrogate pair, clean it with prompt.encode('utf-8', 'replace').decode()"
        ) from error


def tokens_of_words(words: Sequence[str], tokenizer: Any | None, vocab_size: int) -> Words:
    """Each word as it is spelt at the beginning of a text and behind a space.

    Raises:
        ValueError: there is no tokenizer, or a word is no token that the model knows.
    """
    if words and tokenizer is None:
        raise ValueError(
            "bad_words need a tokenizer (skip_tokenizer_init): use logit_bias={token id: -100}, or open the"
            " engine with one"
        )
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        for text in (word.lstrip(), " " + word.lstrip()):
            ids = tuple(encode(text, tokenizer, add_special_tokens=False)) if text.strip() else ()
            if not ids or max(ids) >= vocab_size:
                raise ValueError(
                    f"bad_words holds {word!r}, which is no word of the vocabulary: leave it out"
                )
            found[ids] = None
    return tuple(found)


def _parts(prompt: Any) -> tuple[str | None, Any | None, str | None]:
    if isinstance(prompt, str):
        return prompt, None, None
    if isinstance(prompt, Mapping):
        return _mapping_parts(prompt)
    if isinstance(prompt, Sequence | np.ndarray):
        return None, prompt, None
    raise TypeError(f"a prompt is a str, a list of token ids or a dict, not {type(prompt).__name__}")


def _mapping_parts(prompt: Mapping[str, Any]) -> tuple[str | None, Any | None, str | None]:
    for name in prompt:
        if name in _LATER:
            raise ValueError(f"{name}: {_LATER[name]}")
        if name not in _KNOWN:
            raise ValueError(f"a prompt dict has no {name!r}: it takes {', '.join(_KNOWN)}")
    text, token_ids, salt = prompt.get("prompt"), prompt.get("prompt_token_ids"), prompt.get("cache_salt")
    if text is None and token_ids is None:
        raise ValueError("a prompt dict needs 'prompt' or 'prompt_token_ids'")
    if text is not None and not isinstance(text, str):
        raise TypeError(f"'prompt' is a str, not {type(text).__name__}")
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise ValueError(f"cache_salt is {salt!r}: use a non-empty str, or leave it out")
    return text, token_ids, salt


def conversations_of(messages: Any) -> list[Any]:
    """One conversation or several, as a list of lists of messages whose content is a str (or absent)."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise TypeError(f"messages is {messages!r}: use a list of {{'role': ..., 'content': ...}} dicts")
    found = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
    for conversation in found:
        if not isinstance(conversation, Sequence) or isinstance(conversation, str | bytes):
            raise TypeError(f"a conversation is a list of message dicts, not {conversation!r}")
        for message in conversation:
            if not isinstance(message, Mapping) or "role" not in message:
                raise TypeError(f"a message is a dict with 'role' and 'content', not {message!r}")
    return [[_with_plain_content(message) for message in conversation] for conversation in found]


def _with_plain_content(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message whose content is a list of text parts (as OpenAI's API has it) holds their text, by lines."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return message
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise TypeError(f"the content of a message is a str or a list of text parts, not {content!r}")
    return {**message, "content": "\n".join(map(_text_of_part, content))}


def _text_of_part(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        raise ValueError(
            f"a part of a message is {reprlib.repr(part)}: only text is available, images are not yet"
        )
    return text


def encode_chats(
    tokenizer: Any,
    messages: Any,
    chat_template: str | None,
    add_generation_prompt: bool,
    continue_final_message: bool,
    tools: list[dict[str, Any]] | None,
) -> list[dict[str, Any]]:
    """Conversations as prompts; the arguments are those of `LLM.chat`."""
    if chat_template is None and not getattr(tokenizer, "chat_template", None):
        raise ValueError("the model has no chat template: pass chat_template=..., or use generate")
    if continue_final_message and add_generation_prompt:
        raise ValueError("continue_final_message goes with add_generation_prompt=False")
    conversations = conversations_of(messages)
    write = partial(
        tokenizer.apply_chat_template,
        chat_template=chat_template,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        tools=tools,
        tokenize=False,
    )
    # The template has written the special tokens already.
    return [
        {"prompt": prompt, "prompt_token_ids": encode(prompt, tokenizer, add_special_tokens=False)}
        for prompt in written_by_template(write, conversations)
    ]


def written_by_template(write: Callable[[Any], str], conversations: Sequence[Any]) -> list[str]:
    """Each conversation as text; ValueError where the template refuses it, with the template's reason."""
    try:
        return [write(conversation) for conversation in conversations]
    except Exception as error:  # a template is a program of its author's: anything may come
        raise ValueError(f"the chat template refuses the messages ({error}): correct them or it") from error


def _to_array(token_ids: Any) -> Ints:
    if not isinstance(token_ids, Sequence):  # an array or a tensor
        token_ids = np.asarray(token_ids)
        flat = token_ids.ndim == 1 and token_ids.dtype.kind in "iu"
    else:
        kinds = set(map(type, token_ids))
        flat = not isinstance(token_ids, str | bytes) and all(map(_is_integral, kinds))
    if not flat:
        raise TypeError(f"prompt_token_ids is a flat list of ints, not {reprlib.repr(token_ids)}")
    try:
        ids = np.array(token_ids, np.int64)
    except OverflowError:
        raise _not_a_token(max(token_ids, key=abs)) from None
    if len(ids) and (ids.min() < 0 or ids.max() > np.iinfo(np.int32).max):
        raise _not_a_token(int(ids.min() if ids.min() < 0 else ids.max()))
    return ids.astype(np.int32)


def _not_a_token(wrong: int) -> ValueError:
    return ValueError(f"token id {wrong} is not in the vocabulary: ids are 0 or more, and of 32 bits")


def _is_integral(kind: type) -> bool:
    return issubclass(kind, int | np.integer) and kind is not bool
