"""A prompt that ends in the middle of its last message, which the model goes on with.

As transformers does it: the message is rendered with a tag at its end, where the prompt is cut.
"""

from typing import Any

TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Ends in a space, so that it shows whether the template keeps spaces at the end of a text."""


def begin_final(message: dict[str, Any]) -> str:
    """Puts the tag at the end of the message's text, which is returned without it."""
    content = message.get("content", "")
    if isinstance(content, str):
        message["content"] = content + TAG
        return content
    text: str = content[-1]["text"]
    message["content"] = [*content[:-1], {**content[-1], "text": text + TAG}]
    return text


def end_in_final(prompt: str, begun: str) -> str:
    """`prompt` up to the tag. Raises ValueError when the template does not show the message."""
    at = prompt.rfind(TAG.rstrip())
    if at < 0 or begun.strip() not in prompt:
        raise ValueError("messages: the chat template does not show the text to be continued")
    return prompt[:at] if prompt.startswith(TAG, at) else prompt[:at].rstrip()
