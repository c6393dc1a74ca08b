"""OpenAI's chat completions, completions and models."""

from opta_router.dialects.openai.decode import decode_chat, decode_completion
from opta_router.dialects.openai.encode import AnswerFacts, StreamEncoder, encode
from opta_router.dialects.openai.errors import RenderedError, render_error, render_refusal, status_of
from opta_router.dialects.openai.models import encode_model, encode_models

__all__ = [
    "AnswerFacts",
    "RenderedError",
    "StreamEncoder",
    "decode_chat",
    "decode_completion",
    "encode",
    "encode_model",
    "encode_models",
    "render_error",
    "render_refusal",
    "status_of",
]
