"""The paths of inference: the dialect of each, and where engines have it."""

from gateway.proxy.dialects import ANTHROPIC, OPENAI, RESPONSES, Dialect

INFERENCE_ROUTES: dict[str, Dialect] = {
    "/v1/chat/completions": OPENAI,
    "/v1/completions": OPENAI,
    "/v1/embeddings": OPENAI,
    "/v1/responses": RESPONSES,
    "/v1/rerank": OPENAI,
    "/v1/score": OPENAI,
    "/v1/pooling": OPENAI,
    "/v1/classify": OPENAI,
    "/v1/messages": ANTHROPIC,
    "/v1/messages/count_tokens": ANTHROPIC,
    "/tokenize": OPENAI,
    "/detokenize": OPENAI,
    "/v1/audio/transcriptions": OPENAI,
    "/v1/audio/translations": OPENAI,
}
"""Every path that is forwarded, all of them POST. Any other engine route is answered 404 by the router."""

USAGE_OPTION_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Routes whose streams tell their usage only if asked to; those of the others always do."""

ENGINE_PATHS = {"/v1/pooling": "/pooling", "/v1/classify": "/classify"}
"""Where vLLM serves a route under another path than ours."""
