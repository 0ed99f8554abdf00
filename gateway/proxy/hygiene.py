"""What a request may ask of an engine: what endangers one is refused or capped, each by a rule. Pure.

One request must not end an engine, keep it from everybody else, or make it fetch what its sender can't reach. Each
rule answers to something that has happened to vLLM; docs/configure.md lists them. What is refused can be allowed by
name, for all endpoints (HOSTLER_ALLOW) or for one (its field `allow`).

Names are compared as the JSON decoder reads them: one that is written with escapes is the same name, and of a field
that stands there twice the last one counts, as for the engine.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

import msgspec

from gateway.bodies import built
from gateway.errors import BadRequest
from gateway.proxy.media import MEDIUM, Danger, dangers, dangers_of_chat
from gateway.proxy.nesting import check_nesting
from gateway.proxy.patterns import problem_in, problem_of
from gateway.proxy.peek import ABSENT, COMMON, RARE, ROUTING, WATCHED, Peek, as_tuple
from gateway.settings import Settings
from gateway.types import Allowable

KIB = 1024
INT32 = 2**31 - 1
LIST_LIMIT = 64 * KIB
"""Bytes of a list that is looked through at each token."""
SMALL = 9
"""Bytes of a number that fits 32 bits in any case."""
FLAGS = 32
FLAG_LIMIT = KIB
"""Variables of a chat template that a request may set, and bytes of each."""


class Limits(NamedTuple):
    """How much a request may ask for."""

    n: int
    """Completions of one prompt."""
    logprobs: int
    """Alternatives to each token."""
    tokens: int
    """Of the answer; 0: as many as the engine's context has."""
    schema_kib: int
    depth: int
    """Arrays and objects in each other."""
    media: int
    """Images, sounds, videos and files."""
    allow: frozenset[Allowable] = frozenset()
    """What is allowed for all endpoints."""


def limits_of(settings: Settings) -> Limits:
    """The limits that the operator has set."""
    return Limits(
        n=settings.max_n,
        logprobs=settings.max_logprobs,
        tokens=settings.max_tokens,
        schema_kib=settings.max_schema_kib,
        depth=settings.max_json_depth,
        media=settings.max_media,
        allow=settings.allowed(),
    )


A_TEMPLATE = "a template is a program that runs inside the engine"
A_GRAMMAR = "compiling a grammar can keep the engine busy for good"
PROCESSING = "it goes to the engine's own image and sound code unchecked"
CONNECTING = "it makes the engine connect to others"
AN_ADAPTER = "it names a place inside the engine; name an adapter as 'model'"

REFUSED: dict[str, tuple[Allowable, str]] = {
    "chat_template": (Allowable.CHAT_TEMPLATE, A_TEMPLATE),
    "ec_transfer_params": (Allowable.TRANSFER_PARAMS, CONNECTING),
    "guided_grammar": (Allowable.GRAMMAR, A_GRAMMAR),
    "kv_transfer_params": (Allowable.TRANSFER_PARAMS, CONNECTING),
    "logits_processors": (Allowable.LOGITS_PROCESSORS, "it names code for the engine to run"),
    "lora_path": (Allowable.LORA_PATH, AN_ADAPTER),
    "lora_request": (Allowable.LORA_PATH, AN_ADAPTER),
    "media_io_kwargs": (Allowable.MM_PROCESSOR_KWARGS, PROCESSING),
    "mm_processor_kwargs": (Allowable.MM_PROCESSOR_KWARGS, PROCESSING),
    "prompt_embeds": (Allowable.EMBEDS, "tensors from outside can crash the engine"),
    "prompt_logprobs": (Allowable.PROMPT_LOGPROBS, "with a long prompt it can take more GPU memory than there is"),
    "structural_tag": (Allowable.GRAMMAR, A_GRAMMAR),
    "vllm_xargs": (Allowable.VLLM_XARGS, "it goes to the engine's extensions unchecked"),
}
"""Field to what allows it, and why it is refused (CVE-2025-61620, CVE-2025-62164, CVE-2026-22773 and their like)."""

COUNTS: dict[str, str] = {
    "best_of": "n",
    "logprobs": "logprobs",
    "max_completion_tokens": "tokens",
    "max_output_tokens": "tokens",
    "max_tokens": "tokens",
    "min_tokens": "tokens",
    "n": "n",
    "thinking_token_budget": "",
    "top_k": "",
    "top_logprobs": "logprobs",
    "truncate_prompt_tokens": "",
}
"""Field to its limit (CVE-2026-34756); one without need only fit 32 bits, beyond which tensors overflow."""
SETTINGS = {"n": "HOSTLER_MAX_N", "logprobs": "HOSTLER_MAX_LOGPROBS", "tokens": "HOSTLER_MAX_TOKENS"}

SCHEMAS = frozenset(
    {
        "functions",
        "guided_choice",
        "guided_json",
        "guided_regex",
        "output_config",
        "response_format",
        "structured_outputs",
        "text",
        "tools",
    }
)
"""What is compiled into an automaton (CVE-2025-48942 to -48944, CVE-2025-57809)."""
LISTS = frozenset(
    {
        "allowed_token_ids",
        "bad_words",
        "logit_bias",
        "logprob_token_ids",
        "stop",
        "stop_sequences",
        "stop_token_ids",
    }
)
CONTENTS = frozenset({"data_1", "data_2", "documents", "items", "queries", "query", "text_1", "text_2"})
"""What may hold media on the routes that score and rank."""

TEMPLATE_PARAMETERS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer",
        "tokenizer_kwargs",
        "truncation",
    }
)
"""What the function that renders a template takes beside the template's own variables (CVE-2025-62426)."""


class Hygiene:
    """Checks each request. One that has nothing to check costs a comparison and a look through its messages."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        rules: dict[str, Callable[[str, msgspec.Raw, frozenset[Allowable]], None]] = {
            **dict.fromkeys(REFUSED, self._refused),
            **dict.fromkeys(COUNTS, self._count),
            **dict.fromkeys(SCHEMAS, self._schema),
            **dict.fromkeys(LISTS, self._list),
            **dict.fromkeys(CONTENTS, self._content),
            "chat_template_kwargs": self._flags,
            "background": self._nothing,
            "echo": self._nothing,
            "previous_response_id": self._nothing,
        }
        self._rules = [(there, name, rules[name]) for there, name in enumerate(WATCHED, ROUTING)]
        self._common = self._rules[: COMMON - ROUTING]

    def check(self, asked: Peek, body: bytes, path: str, allow: tuple[Allowable, ...]) -> None:
        """Raise BadRequest for the first thing that an engine must not be asked for; `allow`: the endpoint's own."""
        fields = asked.fields
        has_lists = not asked.is_form and check_nesting(body, self._limits.depth)
        allowed = self._limits.allow.union(allow) if allow else self._limits.allow
        sent = as_tuple(fields)
        for there, name, rule in self._common if sent[COMMON:] == RARE else self._rules:
            value = sent[there]
            if value is not ABSENT:
                rule(name, value, allowed)
        if fields.echo is not ABSENT:
            self._echo(asked, allowed)
        # a single array is that of the messages: their contents are text
        if has_lists and fields.messages is not ABSENT:
            self._judge(dangers_of_chat(fields.messages), "messages", allowed)
        if fields.input is not ABSENT and path == "/v1/responses":
            self._content("input", fields.input, allowed)

    def _refused(self, name: str, value: msgspec.Raw, allowed: frozenset[Allowable]) -> None:
        allowable, why = REFUSED[name]
        if allowable not in allowed and not is_null(value):
            refuse(name, name, why, allowable)

    def _count(self, name: str, value: msgspec.Raw, _allowed: frozenset[Allowable]) -> None:
        if len(value) < SMALL and COUNTS[name] not in {"n", "logprobs"} and not self._limits.tokens:
            return
        count = number(value)
        if count is None:
            return
        limit = COUNTS[name]
        most = getattr(self._limits, limit) if limit else 0
        if count > (most or INT32):
            setting = f" ({SETTINGS[limit]})" if most else ""
            raise BadRequest(f"'{name}' may be at most {most or INT32}{setting}: ask for less", param=name)
        if count < 0 and limit == "logprobs":
            raise BadRequest(f"'{name}' must not be negative: that would mean the whole vocabulary", param=name)

    def _schema(self, name: str, value: msgspec.Raw, allowed: frozenset[Allowable]) -> None:
        self._size(name, value, self._limits.schema_kib * KIB)
        text = bytes(value)
        if name == "guided_regex":
            self._pattern(name, problem_of(str(built(text))))
        escaped = b"\\" in text and b"\\u" in text  # most have no backslash at all, which is seen in no time
        if name == "tools" and (escaped or b"server_url" in text):
            self._content(name, value, allowed)
        if name in {"structured_outputs", "response_format"} or text[:1] == b'"':
            self._structures(name, built(text), allowed)
        elif escaped or b"attern" in text:
            self._pattern(name, problem_in(built(text)))

    def _structures(self, name: str, value: Any, allowed: frozenset[Allowable]) -> None:
        """The fields that name a way to constrain answers, and schemas that are written as text."""
        if isinstance(value, str):
            value = {"json": value}
        if not isinstance(value, dict):
            return
        tagged = value.get("type") == "structural_tag"
        if (tagged or value.get("grammar") or value.get("structural_tag")) and Allowable.GRAMMAR not in allowed:
            refuse(name, name, A_GRAMMAR, Allowable.GRAMMAR)
        self._pattern(name, problem_in(value))
        schema = value.get("json")
        if isinstance(schema, str):
            check_nesting(schema.encode(), self._limits.depth)
            self._pattern(name, problem_in(built(schema.encode())))

    def _pattern(self, name: str, problem: str) -> None:
        if problem:
            raise BadRequest(f"A regular expression in '{name}' is too much: {problem}", param=name)

    def _list(self, name: str, value: msgspec.Raw, _allowed: frozenset[Allowable]) -> None:
        self._size(name, value, LIST_LIMIT)

    def _size(self, name: str, value: msgspec.Raw, most: int) -> None:
        if len(value) > most:
            setting = " (HOSTLER_MAX_SCHEMA_KIB)" if most != LIST_LIMIT else ""
            raise BadRequest(
                f"'{name}' is {len(value) // KIB} KiB long, and {most // KIB} KiB are the most{setting}: send less",
                param=name,
            )

    def _flags(self, name: str, value: msgspec.Raw, allowed: frozenset[Allowable]) -> None:
        """Variables for the model's own template: flags and words are fine, such as `enable_thinking`."""
        flags = built(value)
        if not isinstance(flags, dict):
            return
        for flag, setting in flags.items():
            where = f"{name}.{flag[:64]}"
            if flag in TEMPLATE_PARAMETERS and Allowable.CHAT_TEMPLATE not in allowed:
                refuse(where, where, "it is the engine's own to set", Allowable.CHAT_TEMPLATE)
            large = isinstance(setting, dict | list) or (isinstance(setting, str) and len(setting) > FLAG_LIMIT)
            if (large or len(flags) > FLAGS) and Allowable.CHAT_TEMPLATE_KWARGS not in allowed:
                why = f"only {FLAGS} flags and short words may be set"
                refuse(where, where, why, Allowable.CHAT_TEMPLATE_KWARGS)

    def _content(self, name: str, value: msgspec.Raw, allowed: frozenset[Allowable]) -> None:
        self._judge(dangers(value, name), name, allowed)

    def _judge(self, found: Iterable[Danger], name: str, allowed: frozenset[Allowable]) -> None:
        """Raise BadRequest for the first danger that is not allowed, and for more media than may be."""
        media = 0
        for danger in found:
            if danger is not MEDIUM:
                judge(danger, allowed)
                continue
            media += 1
            if media > self._limits.media:
                raise BadRequest(
                    f"'{name}' holds more than {self._limits.media} images, sounds, videos and files "
                    "(HOSTLER_MAX_MEDIA): send less in one request",
                    param=name,
                )

    def _echo(self, asked: Peek, allowed: frozenset[Allowable]) -> None:
        """A prompt that is echoed with log probabilities has them computed for all its tokens."""
        fields = asked.fields
        wanted = any(
            value is not ABSENT and bytes(value) not in {b"null", b"false", b"0"}
            for value in (fields.logprobs, fields.top_logprobs)
        )
        if wanted and bytes(fields.echo) not in {b"null", b"false"} and Allowable.PROMPT_LOGPROBS not in allowed:
            refuse("echo", "echo", REFUSED["prompt_logprobs"][1], Allowable.PROMPT_LOGPROBS)

    def _nothing(self, name: str, value: msgspec.Raw, allowed: frozenset[Allowable]) -> None:
        """For fields that mean something only beside others, or to somebody else."""


def judge(danger: Danger, allowed: frozenset[Allowable]) -> None:
    """Raise BadRequest for a danger that is not allowed."""
    if danger.allowable is None:
        raise BadRequest(f"'{danger.param}' is too much: {danger.why}", param=danger.param)
    if danger.allowable not in allowed:
        refuse(danger.param, danger.param, danger.why, danger.allowable)


def refuse(param: str, name: str, why: str, allowable: Allowable) -> NoReturn:
    """Raise BadRequest, with what to set."""
    raise BadRequest(
        f"'{name}' is not taken here: {why}. Whoever runs this Hostler can allow it, with "
        f'"allow": ["{allowable}"] on the endpoint or HOSTLER_ALLOW={allowable} for all',
        param=param,
    )


def is_null(value: msgspec.Raw) -> bool:
    """Whether a field says that it is not there."""
    return bytes(memoryview(value)[:4]) == b"null"


def number(value: msgspec.Raw) -> float | None:
    """What an engine takes for a number, also as text; None for what it takes for none."""
    if len(value) > FLAG_LIMIT:
        return float("inf")
    found = built(value)
    if isinstance(found, str):
        try:
            return float(found)
        except ValueError:
            return None
    return None if isinstance(found, bool) or not isinstance(found, int | float) else found
