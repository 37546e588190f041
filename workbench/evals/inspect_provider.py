"""The engine as a model provider of inspect_ai (0.3.285 and later): `--model workbench/zoo/wren-8m`.

Found by the entry point of the group `inspect_ai`. All samples that inspect_ai asks at once share batches.
Knows the front door and inspect_ai. It calls no tools: a task that offers any is refused.
"""

from __future__ import annotations

from typing import Any

from workbench.errors import MissingExtra
from workbench.llm import LLM
from workbench.outputs import RequestOutput
from workbench.params import SamplingParams, StructuredOutputsParams
from workbench.prompts import encode_chats

try:
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessage,
        ChatMessageAssistant,
        GenerateConfig,
        Logprob,
        Logprobs,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        StopReason,
        TopLogprob,
        modelapi,
    )
except ImportError as missing:
    raise MissingExtra(
        f"inspect_ai is not there ({missing}): pip install 'workbench[harnesses]'"
    ) from missing

# inspect_ai's name of a setting -> ours
NAMES = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop_seqs": "stop",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "logit_bias": "logit_bias",
    "num_choices": "n",
}
# What would change answers, and is not there. What inspect_ai does itself is none of our business.
REFUSED = ("best_of", "prompt_logprobs", "reasoning_effort", "reasoning_tokens", "extra_body", "modalities")


@modelapi(name="workbench")
class WorkbenchAPI(ModelAPI):
    """An LLM behind inspect_ai's interface; model_args are settings of `LLM`.

    Raises:
        ValueError, TypeError: a setting that `LLM` refuses, a base_url; in `generate` what the model or this
            provider cannot do: no chat template, tools, images, a config that is not supported.
        RuntimeError: a request ended with an error.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **model_args: Any,
    ) -> None:
        if base_url:
            raise ValueError(f"base_url is {base_url!r}, and the engine runs in this process: leave it out")
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        self.llm = LLM(model_name, **model_args)

    def max_connections(self) -> int:
        """As many samples at once as the engine runs."""
        return self.llm.config.max_num_seqs

    def close(self) -> None:
        """Give the engine's memory back."""
        self.llm.close()

    async def generate(
        self, input: list[ChatMessage], tools: list[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a conversation."""
        if tools:
            raise ValueError(
                f"the task offers {len(tools)} tools, and this provider calls none: take a task without"
            )
        params = self._params(config)
        messages = [{"role": message.role, "content": _text(message)} for message in input]
        (prompt,) = encode_chats(self.llm.get_tokenizer(), [messages], None, True, False, None)
        parts = [part async for part in self.llm.astream(prompt, params)]
        choices = [self._choice(index, parts, config) for index in range(params.n)]
        asked, answered = len(prompt["prompt_token_ids"]), sum(_tokens(parts))
        usage = ModelUsage(input_tokens=asked, output_tokens=answered, total_tokens=asked + answered)
        return ModelOutput(model=self.model_name, choices=choices, usage=usage)

    def _params(self, config: GenerateConfig) -> SamplingParams:
        if refused := [name for name in REFUSED if getattr(config, name) is not None]:
            raise ValueError(f"{refused[0]} is not supported: leave it out")
        params = self.llm.get_default_sampling_params().clone()
        params.max_tokens = None
        for theirs, ours in NAMES.items():
            if (value := getattr(config, theirs)) is not None:
                setattr(params, ours, value)
        if config.logprobs:
            params.logprobs = config.top_logprobs or 0
        if config.response_schema is not None:
            schema = config.response_schema.json_schema.model_dump(exclude_none=True)
            params.structured_outputs = StructuredOutputsParams(json=schema)
        return params

    def _choice(self, index: int, parts: list[RequestOutput], config: GenerateConfig) -> ChatCompletionChoice:
        mine = [one for part in parts for one in part.outputs if one.index == index]
        end = mine[-1]
        if end.finish_reason == "error":
            raise RuntimeError(f"a request of {self.model_name} ended with an error: {end.stop_reason}")
        text = "".join(one.text for one in mine)
        full: StopReason = "model_length" if config.max_tokens is None else "max_tokens"
        message = ChatMessageAssistant(content=text, model=self.model_name, source="generate")
        return ChatCompletionChoice(
            message=message,
            stop_reason="stop" if end.finish_reason == "stop" else full,
            logprobs=_logprobs(mine, config.top_logprobs or 0) if config.logprobs else None,
        )


def _text(message: ChatMessage) -> str:
    kinds = [] if isinstance(message.content, str) else [part.type for part in message.content]
    if other := [kind for kind in kinds if kind not in ("text", "reasoning")]:
        raise ValueError(f"a message holds {other[0]}, and the model reads text: take a task without")
    return str(message.text)


def _tokens(parts: list[RequestOutput]) -> list[int]:
    return [len(one.token_ids) for part in parts for one in part.outputs]


def _logprobs(outputs: list[Any], top: int) -> Logprobs:
    """One entry a token that came; of the alternatives the `top` likeliest, the best first."""
    content = []
    for one in outputs:
        for token_id, entries in zip(one.token_ids, one.logprobs, strict=True):
            best = sorted(entries.values(), key=lambda entry: entry.rank)[:top]
            content.append(
                Logprob(
                    token=entries[token_id].decoded_token,
                    logprob=entries[token_id].logprob,
                    top_logprobs=[TopLogprob(token=e.decoded_token, logprob=e.logprob) for e in best] or None,
                )
            )
    return Logprobs(content=content)
