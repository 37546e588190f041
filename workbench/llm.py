"""The front door: vLLM's API over one engine in this process. What a part below can decide, it decides."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from workbench.build import Built, build
from workbench.cache.hashing import HashAlgorithm
from workbench.config import EngineConfig, read_settings
from workbench.defaults import default_sampling_params
from workbench.engine.clock import wall_clock
from workbench.engine.events import Emitter, EngineStarted
from workbench.engine.loop import Engine
from workbench.engine.policies import Policy
from workbench.engine.request import Request
from workbench.intake import Intake
from workbench.metrics import Metric, read_metrics
from workbench.outputs import RequestOutput
from workbench.params import BeamSearchParams, LoRARequest, RequestOutputKind, SamplingParams
from workbench.parent import Parent
from workbench.progress import Progress
from workbench.prompts import conversations_of
from workbench.step import Step, describe
from workbench.worker import Worker

if TYPE_CHECKING:
    from workbench.trace import Trace

logger = logging.getLogger(__name__)

LATER = "is not available yet"


class LLM:
    """An engine that generates text, in this process.

    Names, defaults and meanings of the arguments are vLLM's; None means: chosen from the device and the
    model, and shown by `llm.config`. Threads may share an LLM: whoever waits drives the step.

    Args:
        model: a Hugging Face folder, a hub id, or "zoo/<name>"; None is the embedded default model.
        dtype: "auto" is the checkpoint's on a GPU and float32 on a CPU.
        max_model_len: most tokens of one request, prompt included.
        max_num_batched_tokens: the token budget of a step.
        max_num_seqs: most requests that run at once.

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
        kv_cache_dtype_skip_layers: list[str] | None = None,
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
        self._built: Built | None = build(settings, self._clock, self._emit)
        self.config: EngineConfig = self._built.config
        self._intake = Intake(self._built, self._clock, self._engine.scheduler.tokens_of, self._in_use)
        self._open: dict[str, Parent] = {}  # by request id, until it ends
        self._children: set[str] = set()  # ids of the open requests' children, where n > 1
        self._by_hand: dict[str, Parent] = {}  # added by add_request, until step() has told their end
        self._queues: dict[Parent, Callable[[BaseException], None]] = {}  # async callers, to hear of a crash
        self._worker = Worker(self._engine, self._crashed)
        self._trace: Trace | None = None
        self._start_trace()

    def _start_trace(self) -> None:
        from workbench.trace import Trace

        tokenizer = self._parts.tokenizer
        decode = None if tokenizer is None else lambda token_ids: str(tokenizer.decode(token_ids))
        self._trace = Trace(decode=decode)
        self._emit.add(self._trace.observer)
        self._emit(EngineStarted(self._clock(), self.config.to_dict()))

    # --- the parts ------------------------------------------------------------------------------------

    @property
    def _parts(self) -> Built:
        if self._built is None:
            raise RuntimeError("this LLM is closed: make a new one")
        return self._built

    @property
    def _engine(self) -> Engine[Any]:
        return self._parts.engine

    @property
    def trace(self) -> Trace:
        """What happened, as tables; it can still be read when the engine is closed."""
        assert self._trace is not None, "the trace is made with the engine"
        return self._trace

    def __repr__(self) -> str:
        c = self.config
        state = ", closed" if self._built is None else ""
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
        with Progress(parents, use_tqdm) as progress:
            self._submit(parents, progress.ended)
            self._drive(parents, lambda: progress.remaining == 0)
        outputs = [parent.output(RequestOutputKind.FINAL_ONLY) for parent in parents]
        return [output for output in outputs if output is not None]

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
        tokenizer = self.get_tokenizer()
        if chat_template is None and not getattr(tokenizer, "chat_template", None):
            raise ValueError("the model has no chat template: pass chat_template=..., or use generate")
        if continue_final_message and add_generation_prompt:
            raise ValueError("continue_final_message goes with add_generation_prompt=False")
        conversations = conversations_of(messages)
        prompts = [
            tokenizer.apply_chat_template(
                conversation,
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                tokenize=False,
            )
            for conversation in conversations
        ]
        # The template has written the special tokens already.
        encoded = [
            {"prompt": prompt, "prompt_token_ids": tokenizer.encode(prompt, add_special_tokens=False)}
            for prompt in prompts
        ]
        return self.generate(
            encoded, sampling_params, use_tqdm=use_tqdm, lora_request=lora_request, priority=priority
        )

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
        return self._stream(parent)

    def _stream(self, parent: Parent) -> Iterator[RequestOutput]:
        arrived: deque[RequestOutput] = deque()

        def listen(_: Request) -> None:
            if (output := parent.output(RequestOutputKind.DELTA)) is not None:
                arrived.append(output)

        self._submit([parent], listen, streams=True)
        try:
            while True:
                self._drive([parent], lambda: bool(arrived) or parent.finished)
                while arrived:
                    yield arrived.popleft()
                if parent.finished:
                    return
        finally:
            self._abort([parent])

    async def astream(
        self,
        prompt: Any,
        params: SamplingParams | None = None,
        *,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
    ) -> AsyncIterator[RequestOutput]:
        """As `stream`, for async code; several at once share batches. One worker thread drives the engine."""
        params = self.get_default_sampling_params() if params is None else params
        parent = self._intake.one(prompt, params, None, lora_request, priority)
        loop, worker = asyncio.get_running_loop(), self._worker
        queue: asyncio.Queue[RequestOutput | BaseException] = asyncio.Queue()

        def put(item: RequestOutput | BaseException) -> None:
            with suppress(RuntimeError):  # the loop has closed: nobody listens any more
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def listen(request: Request) -> None:
            if (output := parent.output(RequestOutputKind.DELTA)) is not None:
                put(output)
            if request.finished:
                worker.ended([request])

        def add() -> None:
            try:
                self._add([parent], listen, streams=True)
            except (ValueError, RuntimeError) as error:  # concerns this caller alone
                worker.ended(parent.requests)
                put(error)

        self._queues[parent] = put
        try:
            worker.post(add, opens=parent.requests)
            while True:
                item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finished:
                    return
        finally:
            del self._queues[parent]
            if not parent.finished and self._built is not None:
                worker.post(lambda: self._end([parent]))

    def _crashed(self, error: BaseException) -> None:
        for put in list(self._queues.values()):
            put(error)

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
        self._submit([parent], None)
        return parent.request_id

    def abort(self, request_id: str | Sequence[str]) -> None:
        """End requests with finish_reason "abort"; ids that are not open are left alone."""
        names = [request_id] if isinstance(request_id, str) else request_id
        self._abort([self._open[name] for name in names if name in self._open])

    def has_unfinished_requests(self) -> bool:
        """Whether a `step` has something to do or to tell."""
        return bool(self._open or self._by_hand)

    def step(self) -> Step:
        """Plan, launch, collect and commit one step, synchronously; what it did, with new outputs."""
        engine = self._engine
        with engine.undisturbed() as interrupts:
            commit = engine.step()
            interrupts.check()  # while nothing has been told, so that the next step tells it
            touched = {id(r) for r in (*commit.requests, *commit.finished)} if commit is not None else set()
            outputs = []
            for name, parent in list(self._by_hand.items()):
                if parent.finished:
                    del self._by_hand[name]
                elif not any(id(request) in touched for request in parent.requests):
                    continue
                if (output := parent.output()) is not None:
                    outputs.append(output)
            return describe(commit, self.config.max_num_batched_tokens, outputs)

    # --- inside ---------------------------------------------------------------------------------------

    def _submit(
        self, parents: Sequence[Parent], listen: Callable[[Request], None] | None, *, streams: bool = False
    ) -> None:
        try:
            with self._engine.undisturbed():
                self._add(parents, listen, streams=streams)
        except BaseException:
            self._abort(parents)
            raise

    def _add(
        self, parents: Sequence[Parent], listen: Callable[[Request], None] | None, *, streams: bool
    ) -> None:
        """Queue requests, in the engine's turn; those nobody listens to are told by `step`."""
        for parent in parents:
            for name in parent.names:
                if self._in_use(name):
                    raise ValueError(f"request id {name!r} is in use: choose another, or leave it out")
        for parent in parents:
            self._open[parent.request_id] = parent
            self._children.update(parent.names[1:])
            if listen is None:
                self._by_hand[parent.request_id] = parent
            for request in parent.requests:
                request.streams = streams
                request.listener = self._listener(parent, listen)
                self._engine.scheduler.add(request)

    def _in_use(self, name: str) -> bool:
        return name in self._open or name in self._by_hand or name in self._children

    def _listener(
        self, parent: Parent, listen: Callable[[Request], None] | None
    ) -> Callable[[Request], None]:
        def told(request: Request) -> None:
            if parent.finished:
                self._open.pop(parent.request_id, None)
                self._children.difference_update(parent.names[1:])
            if listen is not None:
                listen(request)

        return told

    def _drive(self, parents: Sequence[Parent], done: Callable[[], bool]) -> None:
        """Step until done; whatever interrupts this aborts the call's own requests and no others."""
        try:
            self._engine.run_until(done)
        except BaseException:
            self._abort(parents)
            raise

    def _abort(self, parents: Sequence[Parent]) -> None:
        if self._built is not None and not all(parent.finished for parent in parents):
            with self._engine.undisturbed():
                self._engine.drain()
                self._end(parents)

    def _end(self, parents: Iterable[Parent]) -> None:
        """Abort those of the requests that are open here, in the engine's turn."""
        parents = [parent for parent in parents if self._open.get(parent.request_id) is parent]
        if parents:
            self._engine.abort([request for parent in parents for request in parent.requests])

    # --- around ---------------------------------------------------------------------------------------

    def get_tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        if self._parts.tokenizer is None:
            raise ValueError("the engine has no tokenizer (skip_tokenizer_init)")
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
            pool = self._engine.scheduler.cache.pool
            if pool.num_held:
                return False
            pool.forget_all()
            return True

    def close(self) -> None:
        """End what is open and give all memory back. The trace can still be read."""
        if self._built is None:
            return
        with self._engine.undisturbed():
            self._engine.drain()
            self._end(list(self._open.values()))
        on_gpu = self.config.device == "cuda"
        del self._intake, self._worker
        self._built = None
        self._by_hand.clear()
        gc.collect()
        if on_gpu:
            import torch

            torch.cuda.empty_cache()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what comes later -----------------------------------------------------------------------------

    def beam_search(self, prompts: Any, params: BeamSearchParams, **options: Any) -> Any:
        """Not available yet."""
        raise ValueError(f"beam_search {LATER}: use generate with n > 1 and pick by cumulative_logprob")

    def _pooling(self, name: str) -> Any:
        raise ValueError(f"{name} {LATER}: this engine generates text; use generate or chat")

    def embed(self, *args: Any, **options: Any) -> Any:
        """Not available yet."""
        return self._pooling("embed")

    def encode(self, *args: Any, **options: Any) -> Any:
        """Not available yet."""
        return self._pooling("encode")

    def classify(self, *args: Any, **options: Any) -> Any:
        """Not available yet."""
        return self._pooling("classify")

    def score(self, *args: Any, **options: Any) -> Any:
        """Not available yet."""
        return self._pooling("score")

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """Not available yet."""
        raise ValueError(f"LoRA {LATER}")

    def remove_lora(self, lora_id: int) -> bool:
        """Not available yet."""
        raise ValueError(f"LoRA {LATER}")

    def list_loras(self) -> set[int]:
        """Not available yet."""
        raise ValueError(f"LoRA {LATER}")

    def pin_lora(self, lora_id: int) -> bool:
        """Not available yet."""
        raise ValueError(f"LoRA {LATER}")
