"""A loaded generator → a chat model of LangChain. Knows no passages: what it is told is a conversation.

The conversation becomes token ids as everywhere here: no text of a message can become a control token. Tools, images
and structured output are refused, because Phi-3.5's chat format has no place for them.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, model_validator

from workbench.cancel import CancelToken
from workbench.generation.chat_tokens import answer_ids, chat_token_ids
from workbench.generation.decoding import OnText
from workbench.generation.options import Sampling
from workbench.generation.phi import Generator
from workbench.generation.prompts import ROLES, Prompt, chat_prompt
from workbench.generation.results import Generation

# LangChain gives these to every chat model; they say nothing to one that runs on this machine.
REMOTE_OPTIONS = ("api_key", "timeout", "max_retries")


class PhiChatModel(BaseChatModel):
    """A generator as LangChain's ``BaseChatModel``: invoke, stream, batch and their async twins, ``bind(stop=[…])``.

    ``max_new_tokens`` (also ``max_tokens``), ``temperature``, ``top_p`` and ``seed`` are those of ``generate`` and
    ``Sampling``; the answer ends before the first of the ``stop`` strings. A message's ``usage_metadata`` counts tokens
    (``cache_read``: those that came from a cached prefix); its ``response_metadata`` has ``finish_reason`` ("stop",
    "length" or "cancelled"), ``model_name``, the LongRoPE ``regime`` and ``seconds``. Closing a stream early stops the
    model at its next token. Calls from several threads (``batch``) take turns. Routing is not recorded: ``wb.ask``
    does that.

    Raises ``ValueError`` for a message that is not text and ``PromptTooLong`` for a conversation that leaves no room
    for ``max_new_tokens`` in the generator's context; nothing is ever cut silently.

    >>> from workbench.generation.loading import load_generator
    >>> chat = PhiChatModel(generator=load_generator("pocket"), max_new_tokens=8)
    >>> message = chat.invoke([("system", "Be brief."), ("user", "Which valve failed first?")])
    >>> message.usage_metadata["output_tokens"] <= 8, message.response_metadata["regime"]
    (True, 'short')
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True, extra="forbid")

    generator: Generator
    max_new_tokens: int = Field(default=256, alias="max_tokens", ge=1)
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: list[str] | None = None
    streaming: bool = False  # LangChain's: True makes invoke() stream to callbacks

    @model_validator(mode="before")
    @classmethod
    def _drop_remote_options(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if name not in REMOTE_OPTIONS}

    @model_validator(mode="after")
    def _check_sampling(self) -> PhiChatModel:
        Sampling(self.temperature, self.top_p, self.seed)
        return self

    @property
    def _llm_type(self) -> str:
        return "workbench-phi"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model_name": self.generator.name,
            "context": self.generator.context,
            "regime": self.generator.regime,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": self.stop,
        }

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """False: a loaded model cannot be written into LangChain's JSON."""
        return False

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of `text` alone, none of them a control token."""
        return answer_ids(self.generator.tokenizer, text, continues=True)

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """The tokens that `messages` take with the chat format around them, however many; `tools` must be empty."""
        if tools:
            raise ValueError(_no_tools("tools"))
        return len(chat_token_ids(self.generator.tokenizer, _turns(messages))[1])

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider="workbench",
            ls_model_name=kwargs.get("model", self.generator.name),
            ls_model_type="chat",
            ls_temperature=kwargs.get("temperature", self.temperature),
            ls_max_tokens=kwargs.get("max_tokens", self.max_new_tokens),
        )
        if ends := stop or self.stop:
            params["ls_stop"] = ends
        return params

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._answer(self._call(messages, stop, kwargs), CancelToken())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call, cancel = self._call(messages, stop, kwargs), CancelToken()
        try:
            return await asyncio.to_thread(self._answer, call, cancel)
        finally:
            cancel.cancel()  # a cancelled task does not leave the model running

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call, cancel = self._call(messages, stop, kwargs), CancelToken()
        texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with ThreadPoolExecutor(1, thread_name_prefix="workbench-stream") as worker:
            running = worker.submit(self._run, call, cancel, texts.put)
            running.add_done_callback(lambda _: texts.put(None))
            try:
                while (text := texts.get()) is not None:
                    yield ChatGenerationChunk(message=AIMessageChunk(content=text))
            finally:
                cancel.cancel()  # the reader closed the stream: the model stops at its next token
        generation = running.result()
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                usage_metadata=_usage(call.prompt, generation),
                response_metadata=_metadata(generation),
                chunk_position="last",
            )
        )

    def _answer(self, call: _Call, cancel: CancelToken) -> ChatResult:
        generation = self._run(call, cancel, None)
        message = AIMessage(
            content=generation.text,
            usage_metadata=_usage(call.prompt, generation),
            response_metadata=_metadata(generation),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _run(self, call: _Call, cancel: CancelToken, on_text: OnText | None) -> Generation:
        return self.generator.generate(
            call.prompt,
            max_new_tokens=call.max_new_tokens,
            sampling=call.sampling,
            stop=call.stop,
            on_text=on_text,
            cancel=cancel,
            capture=False,
        )

    def _call(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, options: dict[str, Any]
    ) -> _Call:
        """One call with its own `options`, which go before the model's."""
        options = {name: value for name, value in options.items() if name != "stream"}
        new_tokens = options.pop("max_tokens", options.pop("max_new_tokens", self.max_new_tokens))
        sampling = Sampling(
            temperature=options.pop("temperature", self.temperature),
            top_p=options.pop("top_p", self.top_p),
            seed=options.pop("seed", self.seed),
        )
        if (model := options.pop("model", self.generator.name)) != self.generator.name:
            raise ValueError(
                f"model={model!r} cannot replace the loaded {self.generator.name!r}: "
                "make another PhiChatModel with wb.load_generator(…)"
            )
        if any(options.get(name) for name in ("tools", "tool_choice", "functions")):
            raise ValueError(_no_tools("tools"))
        if options:
            raise ValueError(
                f"PhiChatModel does not know {', '.join(sorted(options))}; a call takes max_tokens, temperature, "
                "top_p, seed and stop"
            )
        if not 1 <= new_tokens < self.generator.context:
            raise ValueError(
                f"max_tokens={new_tokens} must be at least 1 and less than the context of {self.generator.context}"
            )
        prompt = chat_prompt(
            _turns(messages),
            tokenizer=self.generator.tokenizer,
            budget_tokens=self.generator.context - new_tokens,
        )
        ends = stop or self.stop or ()
        if isinstance(ends, str):
            raise ValueError(f"stop={ends!r} must be a list of strings, like [{ends!r}]")
        return _Call(prompt, new_tokens, sampling, tuple(ends))


@dataclass(frozen=True, slots=True)
class _Call:
    """What one call asks of the generator."""

    prompt: Prompt
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]


def _turns(messages: Sequence[BaseMessage]) -> list[tuple[str, str]]:
    return [(_role(m, n), _text(m, n)) for n, m in enumerate(messages, start=1)]


def _role(message: BaseMessage, number: int) -> str:
    if isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
        raise ValueError(_no_tools(f"message {number} with its tool calls"))
    for kind, role in ((SystemMessage, "system"), (HumanMessage, "user"), (AIMessage, "assistant")):
        if isinstance(message, kind):
            return role
    if isinstance(message, ChatMessage) and message.role in ROLES:
        return message.role
    if message.type in ("tool", "function"):
        raise ValueError(_no_tools(f"message {number} with its result"))
    raise ValueError(
        f"message {number} is of type {message.type!r}; give system, human and AI messages"
    )


def _text(message: BaseMessage, number: int) -> str:
    """The message's text; anything else in it is refused by its name."""
    blocks = [message.content] if isinstance(message.content, str) else message.content
    parts = []
    for block in blocks:
        text = block if isinstance(block, str) else block.get("text")
        kind = "text" if isinstance(block, str) else block.get("type")
        if kind != "text" or not isinstance(text, str):
            raise ValueError(
                f"message {number} holds a part of type {kind!r}; Phi-3.5 reads text alone: describe it in words"
            )
        parts.append(text)
    return "".join(parts)


def _no_tools(what: str) -> str:
    return f"{what} cannot be told to Phi-3.5, whose chat format has no tools: put what is needed into the text"


def _usage(prompt: Prompt, generation: Generation) -> UsageMetadata:
    read, written = len(prompt.token_ids), len(generation.token_ids)
    return UsageMetadata(
        input_tokens=read,
        output_tokens=written,
        total_tokens=read + written,
        input_token_details={"cache_read": generation.cache.reused_tokens},
    )


def _metadata(generation: Generation) -> dict[str, Any]:
    return {
        "finish_reason": generation.finish_reason,
        "model_name": generation.generator,
        "regime": generation.regime,
        "seconds": generation.timing.seconds,
    }
