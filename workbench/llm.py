"""The front door: vLLM's API over one engine in this process. What a part below can decide, it decides."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from workbench.beams import BeamSearch
from workbench.between_steps import BetweenSteps
from workbench.build import Built, adapters_of, build, give_memory_back
from workbench.cache.hashing import HashAlgorithm
from workbench.config import EngineConfig, read_settings
from workbench.defaults import default_sampling_params
from workbench.engine.clock import wall_clock
from workbench.engine.events import Emitter, Observer
from workbench.engine.loop import Engine
from workbench.engine.policies import Policy
from workbench.intake import Intake
from workbench.likelihood import likelihood, read_pairs, requests_for
from workbench.loras import Loras
from workbench.metrics import Metric, read_metrics
from workbench.open_requests import CLOSED, OpenRequests
from workbench.outputs import BeamSearchOutput, Likelihood, RequestOutput
from workbench.params import BeamSearchParams, LoRARequest, RequestOutputKind, SamplingParams
from workbench.parent import Parent
from workbench.parts import Parts
from workbench.progress import Progress
from workbench.prompts import encode_chats
from workbench.reserved import reserved
from workbench.step import Step, describe
from workbench.streams import AsyncStreams, stream
from workbench.watchers import Observation, Watchers

if TYPE_CHECKING:
    from workbench.trace import Trace

logger = logging.getLogger(__name__)


class LLM:
    """An engine that generates text, in this process.

    Names, defaults and meanings of the arguments are vLLM's; None means: chosen from the device and the
    model, and shown by `llm.config`. Threads may share an LLM: whoever waits drives the step.

    Args:
        model: a Hugging Face folder, a hub id, or "zoo/<name>"; None is the embedded default model.
        dtype: "auto" is float32 on a CPU, on a GPU the checkpoint's 16 bits (bfloat16 where it has 32).
        max_model_len: most tokens of one request, prompt included.
        max_num_batched_tokens: the token budget of a step.
        max_num_seqs: most requests that run at once.
        kv_cache_dtype: "auto", the model's; or "fp8", "fp8_e5m2", "fp8_per_token_head" in half the memory.
        structured_outputs_config: {"backend": "auto"}, or the name of what compiles grammars.

    Raises:
        TypeError: an unknown argument; the message names what to use instead.
        ValueError: a value out of range, a model that is not supported, or too little memory for one request.
        OSError: a missing or unreadable file.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        seed: int = 0,
        gpu_memory_utilization: float = 0.9,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        block_size: int = 16,
        enable_prefix_caching: bool = True,
        prefix_caching_hash_algo: HashAlgorithm = "sha256",
        kv_cache_dtype: str = "auto",
        kv_cache_dtype_skip_layers: list[str | int] | None = None,
        calculate_kv_scales: bool = False,
        kv_cache_memory_bytes: int | None = None,
        num_gpu_blocks_override: int | None = None,
        enforce_eager: bool = False,
        load_format: Literal["auto", "safetensors", "dummy"] = "auto",
        skip_tokenizer_init: bool = False,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        scheduling_policy: str | Policy = "fcfs",
        long_prefill_token_threshold: int = 0,
        async_scheduling: bool | None = None,
        max_logprobs: int = 20,
        logprobs_mode: str = "raw_logprobs",
        logits_processors: list[Any] | None = None,
        speculative_config: dict[str, Any] | None = None,
        enable_lora: bool = False,
        max_loras: int = 1,
        max_lora_rank: int = 16,
        max_cpu_loras: int | None = None,
        structured_outputs_config: dict[str, Any] | None = None,
        tensor_parallel_size: int = 1,
        hf_overrides: dict[str, Any] | None = None,
        device: str = "auto",
        **unknown: Any,
    ) -> None:
        given = {
            name: value for name, value in locals().items() if name not in ("self", "unknown", "__class__")
        }
        settings = read_settings(given | unknown)
        self._clock = wall_clock
        self._emit = Emitter()
        built = build(settings, self._clock, self._emit)
        self.config: EngineConfig = built.config
        self._memory = built.memory
        self._requests = OpenRequests(built.engine)
        intake = Intake(built, self._clock, built.engine.scheduler.tokens_of, self._requests.in_use)
        loras = Loras(built, self._clock, self._emit)
        self._open: Parts | None = Parts(built, intake, AsyncStreams(self._requests), loras)
        self._watchers = Watchers(self._emit, self._clock, lambda: self._open and self._open.built)

    # --- the parts ------------------------------------------------------------------------------------

    @property
    def _opened(self) -> Parts:
        if self._open is None:
            raise RuntimeError(CLOSED)
        return self._open

    @property
    def _parts(self) -> Built:
        return self._opened.built

    @property
    def _engine(self) -> Engine[Any]:
        return self._parts.engine

    @property
    def _intake(self) -> Intake:
        return self._opened.intake

    @property
    def scheduler(self) -> BetweenSteps:
        """Between two steps: the next one as it will be, the waiting queue and the token budget, to edit."""
        return BetweenSteps(lambda: self._engine, self._requests, self.config.max_num_batched_tokens)

    @property
    def trace(self) -> Trace:
        """What happened, as tables; it can still be read when the engine is closed."""
        return self._watchers.trace

    def observe(self, callback: Observer) -> Observation:
        """Call `callback` with every event from now on, until `end()` of what is returned or its block's end.

        The events are those of `workbench.engine.events`, each told as it is decided, within the step. A
        callback that raises is set aside with a warning; none can change the run.
        """
        return self._watchers.observe(callback)

    @property
    def memory(self) -> str:
        """What the device's memory goes to, in GiB, and the tokens that the KV cache holds: a table to print.

        On a GPU: weights, the activations of the largest step as it was measured, what is set aside for
        graphs, and what is left.
        """
        return self._memory

    def __repr__(self) -> str:
        c = self.config
        state = ", closed" if self._open is None else ""
        return (
            f"LLM({c.model!r}, {c.device_name}, {c.dtype}, {c.num_blocks} blocks of {c.block_size},"
            f" budget {c.max_num_batched_tokens}, {c.max_num_seqs} requests of {c.max_model_len}{state})"
        )

    # --- all at once ----------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt; outputs in the order of the prompts.

        Args:
            prompts: a str, a list of token ids, a dict with "prompt" or "prompt_token_ids" and perhaps
                "cache_salt", or a list of these.
            sampling_params: one for all or one a prompt; None: the model's defaults.
            use_tqdm: show a progress bar; or a function that makes one.

        Raises:
            ValueError, TypeError: for the first bad prompt or param, before any work starts.
        """
        params = self.get_default_sampling_params() if sampling_params is None else sampling_params
        parents = self._intake.all(prompts, params, lora_request, priority)
        self._run(parents, use_tqdm)
        outputs = [parent.output(RequestOutputKind.FINAL_ONLY) for parent in parents]
        return [output for output in outputs if output is not None]

    def _run(self, parents: Sequence[Parent], use_tqdm: bool | Callable[..., Any]) -> None:
        with Progress(parents, use_tqdm) as progress:
            self._requests.submit(parents, progress.ended)
            self._requests.drive(parents, lambda: progress.remaining == 0)

    def loglikelihood(
        self, pairs: Sequence[tuple[Any, Any]], *, use_tqdm: bool | Callable[..., Any] = True
    ) -> list[Likelihood]:
        """How likely each continuation is behind its context, from (context, continuation) pairs.

        Each is a str or token ids. Two strs are read as one text: spaces at the end of the context, and a
        token that reaches over the border, belong to the continuation. A common context is computed once.
        """
        if self.config.logprobs_mode.endswith("logits"):
            raise ValueError("loglikelihood needs logprobs: open the LLM with logprobs_mode='raw_logprobs'")
        read = read_pairs(pairs, self._parts.tokenizer, self._parts.spec.bos_token_id)
        parents = requests_for(read, self._intake)
        # Contexts side by side, so that their blocks are still there for those that share them.
        self._run([parents[i] for i in sorted(range(len(read)), key=lambda i: read[i])], use_tqdm)
        return [likelihood(pair, parent) for pair, parent in zip(read, parents, strict=True)]

    def chat(
        self,
        messages: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Answer conversations: a list of {"role", "content"} messages, or a list of such lists."""
        encoded = encode_chats(
            self.get_tokenizer(),
            messages,
            chat_template,
            add_generation_prompt,
            continue_final_message,
            tools,
        )
        return self.generate(
            encoded, sampling_params, use_tqdm=use_tqdm, lora_request=lora_request, priority=priority
        )

    def beam_search(
        self,
        prompts: Any,
        params: BeamSearchParams,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        use_tqdm: bool | Callable[..., Any] = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """The `beam_width` best continuations of every prompt; `workbench/beams.py` has the rule.

        Args:
            concurrency_limit: prompts that are searched at once; None: all.
        """
        search = BeamSearch(self.config, self._parts.spec, self._parts.tokenizer, params)
        origins = search.read(prompts, lora_request, self._intake)
        return search.run(origins, self.generate, use_tqdm, concurrency_limit)

    # --- as it comes ----------------------------------------------------------------------------------

    def stream(
        self,
        prompt: Any,
        params: SamplingParams | None = None,
        *,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
    ) -> Iterator[RequestOutput]:
        """Complete one prompt and yield what is new (DELTA outputs); closing the iterator aborts it."""
        params = self.get_default_sampling_params() if params is None else params
        parent = self._intake.one(prompt, params, None, lora_request, priority)
        return stream(self._requests, parent)

    def astream(
        self,
        prompt: Any,
        params: SamplingParams | None = None,
        *,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]:
        """As `stream`, for async code; several at once share batches. One worker thread drives the engine."""
        params = self.get_default_sampling_params() if params is None else params
        parent = self._intake.one(prompt, params, None, lora_request, priority)
        return self._opened.streams.stream(parent)

    # --- by hand --------------------------------------------------------------------------------------

    def add_request(
        self,
        prompt: Any,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
    ) -> str:
        """Queue a prompt for `step`; its id."""
        params = self.get_default_sampling_params() if params is None else params
        parent = self._intake.one(prompt, params, request_id, lora_request, priority)
        self._requests.submit([parent], None)
        return parent.request_id

    def abort(self, request_id: str | Sequence[str]) -> None:
        """End requests with finish_reason "abort"; ids that are not open are left alone."""
        if not isinstance(request_id, Sequence):
            raise TypeError(f"request_id is {request_id!r}: use an id, or a list of ids")
        names = [request_id] if isinstance(request_id, str) else request_id
        self._requests.abort(self._requests.named(names))

    def has_unfinished_requests(self) -> bool:
        """Whether a `step` has something to do or to tell."""
        return bool(self._requests)

    def step(self) -> Step:
        """Plan, launch, collect and commit one step, synchronously; what it did, with new outputs.

        Where all open requests wait for their grammars, it waits for the first of them.
        """
        engine = self._engine
        engine.wait_for_work()
        with engine.undisturbed() as interrupts:
            commit = engine.step()
            self.trace.flush()  # whoever steps by hand may look at once, not a second later
            interrupts.check()  # while nothing has been told, so that the next step tells it
            outputs = self._requests.outputs_by_hand(commit)
            return describe(commit, engine.scheduler.limits.budget, outputs)

    # --- around ---------------------------------------------------------------------------------------

    def get_tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        if self._parts.tokenizer is None:
            raise ValueError(
                "the engine has no tokenizer (skip_tokenizer_init): open it with one, or pass token ids"
            )
        return self._parts.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json asks for; plain SamplingParams() without one."""
        return default_sampling_params(self._parts.folder)

    def get_metrics(self) -> list[Metric]:
        """The engine's counters and gauges, by the names people know (prefix "vllm:")."""
        return read_metrics(self._engine.scheduler)

    def reset_prefix_cache(self) -> bool:
        """Forget every cached prefix; False, and nothing done, while requests hold blocks."""
        with self._engine.undisturbed():
            self._engine.drain()
            return self._engine.scheduler.forget_prefixes()

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """Read an adapter, check it and bring its weights to the host, ahead of its first request."""
        adapters_of(self._parts).add(lora_request)
        return True

    def remove_lora(self, lora_id: int) -> bool:
        """Forget an adapter; False where there is none. ValueError while open requests use it."""
        return self._opened.loras.remove(lora_id)

    def list_loras(self) -> set[int]:
        """The lora_int_ids that were added, by `add_lora` or with a request."""
        return adapters_of(self._parts).ids()

    def pin_lora(self, lora_id: int) -> bool:
        """From its next request on, an adapter keeps its slot on the device until it is removed."""
        self._opened.loras.pin(lora_id)
        return True

    def close(self) -> None:
        """End what is open and give all memory back. The trace can still be read."""
        if self._open is None:
            return
        self._requests.close()
        self._parts.grammars.close()
        self._emit.off_switch()  # or the books stay alive with the trace
        self._open = None
        give_memory_back(self.config.device)

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        """Names that vLLM has and this engine has not yet: callable, to say so."""
        if (refuse := reserved(name)) is not None:
            return refuse
        raise AttributeError(f"LLM has no {name!r}")
