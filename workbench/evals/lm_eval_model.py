"""The engine as a model of lm_eval (EleutherAI's harness, 0.4.13 and later).

    simple_evaluate(model=WorkbenchLM(llm), tasks=[...])                # an engine that is open
    simple_evaluate(model="workbench", model_args="model=zoo/wren-8m")  # once this is imported
    workbench eval lm_eval run --model_args model=zoo/wren-8m           # the same, in the shell

Tokens, windows and truncation are those of lm_eval's `hf` model, so that its numbers come out; a context that
several continuations share is computed once. Knows the front door and lm_eval; nothing of our own tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.errors import MissingExtra
from workbench.llm import LLM
from workbench.params import SamplingParams

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as missing:
    raise MissingExtra(f"lm_eval is not there ({missing}): pip install 'workbench[harnesses]'") from missing

MAX_GEN_TOKS = 256  # tokens of an answer where the task does not say, as in lm_eval's `hf`


@register_model("workbench")
class WorkbenchLM(TemplateLM):
    """An LLM behind lm_eval's interface.

    Args:
        llm: an open engine, which stays open; None: one is opened with `model` and `settings`.
        model: as `LLM` takes it; for lm_eval's model_args.
        batch_size, max_batch_size: lm_eval always hands them over; the engine fills its steps itself.
        device: as `LLM` takes it; None: "auto".
        max_length: most tokens that predict one more; None: max_model_len - 1, as one place of a request is
            for the token that is predicted. `hf` uses all max_model_len: for texts longer than that, give
            both models one number.
        settings: of `LLM`.

    Raises:
        ValueError, TypeError: an argument that is not supported, both an engine and settings, a `max_length`
            that the engine cannot hold.
    """

    def __init__(
        self,
        llm: LLM | None = None,
        model: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: str | None = None,
        max_length: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if llm is not None and (model or settings):
            given = ", ".join(["model"] * bool(model) + sorted(settings))
            raise ValueError(f"an open engine was given, and {given} for another one: leave one of them out")
        self.llm = LLM(model, device=device or "auto", **settings) if llm is None else llm
        self.tokenizer = self.llm.get_tokenizer()
        most = self.llm.config.max_model_len - 1
        if max_length is not None and not 1 <= max_length <= most:
            raise ValueError(
                f"max_length is {max_length}: use 1 to {most}, one less than the engine's max_model_len"
            )
        self.max_length = max_length or most

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context."""
        begins = self.tokenizer.bos_token_id
        return self.eot_token_id if begins is None else int(begins)

    @property
    def tokenizer_name(self) -> str:
        """What lm_eval keeps prompts of a chat template by."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text, with those that begin one unless it has them, or the flag says otherwise."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        flag: dict[str, Any] = (
            {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        )
        return list(self.tokenizer.encode(string, **flag))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as a prompt."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitting(context, continuation) for _, context, continuation in requests]
        found = self.llm.loglikelihood(pairs, use_tqdm=not disable_tqdm)
        answers = [(one.logprob, one.is_greedy) for one in found]
        for request, answer in zip(requests, answers, strict=True):
            if request[0] is not None:  # windows of a longer text are nobody's question
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return answers

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """What is too long loses its beginning; the last token predicts nothing, and needs no room."""
        if len(continuation) > self.max_length:
            raise ValueError(
                f"a continuation has {len(continuation)} tokens, and the engine holds {self.max_length}: "
                "shorten it, or raise max_model_len"
            )
        return context[-(self.max_length + 1 - len(continuation)) :], continuation

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The logprob of whole texts, each in windows with a context of one token, as `hf` makes them."""
        windows = [
            [(None, *make_disjoint_window(window)) for window in self._windows(request.args[0])]
            for request in requests
        ]
        found = iter(self._loglikelihood_tokens([one for text in windows for one in text], disable_tqdm))
        totals = [sum(next(found)[0] for _ in text) for text in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, text: str) -> Any:
        return get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers up to their stop strings, all at once, whatever each of them asks for."""
        params = [self._params(kwargs) for _, kwargs in (request.args for request in requests)]
        prompts = [
            self._with_room(request.args[0], asked.max_tokens)
            for request, asked in zip(requests, params, strict=True)
        ]
        outputs = self.llm.generate(prompts, params, use_tqdm=not disable_tqdm)
        texts = []
        for request, output in zip(requests, outputs, strict=True):
            one = output.outputs[0]
            if one.finish_reason == "error":
                raise RuntimeError(f"{request.args[0]!r:.60} ended with an error: {one.stop_reason}")
            texts.append(one.text)
            self.cache_hook.add_partial("generate_until", request.args, one.text)
        return texts

    def _params(self, asked: dict[str, Any]) -> SamplingParams:
        """A task's generation_kwargs; TypeError names one that SamplingParams does not have."""
        known: dict[str, Any] = {**normalize_gen_kwargs(asked, MAX_GEN_TOKS)}
        known.pop("do_sample", None)  # the temperature says it
        until = known.pop("until", None) or []
        stop = [text for text in ([until] if isinstance(until, str) else until) if text]
        return SamplingParams(max_tokens=known.pop("max_gen_toks"), stop=stop or None, **known)

    def _with_room(self, context: str, answer: int | None) -> list[int]:
        room = self.max_length - (answer or 0)
        if room < 1:
            raise ValueError(
                f"an answer of {answer} tokens leaves no room for a prompt, with {self.max_length} in all:"
                " lower the task's max_gen_toks, or raise max_model_len"
            )
        return self.tok_encode(context)[-room:]
