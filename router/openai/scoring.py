"""What a request asks of its prompt's own tokens, for workers and for the answer.

`echo` with `logprobs` shows them before the generated ones, as OpenAI's completions did;
`prompt_logprobs` lists them apart, as vLLM does.
"""

from collections.abc import Sequence

from protocol.readings import ScorePrompt
from router.api.errors import bad_field, unsupported_field
from router.api.generation import MAX_ALTERNATIVES, ShownScores
from router.openai.schemas import CompletionRequest, SamplingFields


def shown_scores(fields: SamplingFields) -> ShownScores | None:
    """None: none. Raises ApiError 400."""
    listed, echoed = fields.prompt_logprobs, None
    if isinstance(fields, CompletionRequest) and fields.echo:
        echoed = fields.logprobs
    if listed is None and echoed is None:
        return None
    if listed is not None and fields.stream:
        raise unsupported_field("prompt_logprobs", "together with stream is")
    return ShownScores(echoed=echoed, listed=listed)


def reading_of(shown: ShownScores | None, token_ids: Sequence[int]) -> ScorePrompt | None:
    """None also of a prompt of one token, which nothing comes before."""
    if shown is None or len(token_ids) < 2:
        return None
    return ScorePrompt(num_top=max(shown.echoed or 0, shown.listed or 0))


def check_num_scores(shown: ShownScores | None, *, num_prompt_tokens: int) -> None:
    """Of an answer that is not streamed, with so many prompt tokens in all choices. Raises ApiError
    400."""
    if shown is None:
        return
    each = [1 + num for num in (shown.echoed, shown.listed) if num is not None]
    if num_prompt_tokens * sum(each) > MAX_ALTERNATIVES:
        param = "logprobs" if shown.listed is None else "prompt_logprobs"
        rule = f"choices x prompt tokens x (1 + {param}): at most {MAX_ALTERNATIVES}"
        raise bad_field(param, rule)
