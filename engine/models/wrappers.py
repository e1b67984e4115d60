"""Multimodal models of which the text alone is served.

Images, video and sound are refused where a request has them. For text alone the positions of a
multimodal rope (`mrope`) are the same in all its sections: it is a plain one.
"""

from collections.abc import Mapping

from engine.models.family import Wrapper

_QWEN_VL_KEYS = frozenset(
    {"vision_config", "image_token_id", "video_token_id", "vision_token_id"}
) | {"vision_start_token_id", "vision_end_token_id"}

WRAPPERS: Mapping[str, Wrapper] = {
    wrapper.model_type: wrapper
    for wrapper in (
        Wrapper(
            model_type="gemma3", architecture="Gemma3ForConditionalGeneration",
            keys=frozenset({"vision_config", "mm_tokens_per_image", "boi_token_index"})
            | {"eoi_token_index", "image_token_index"},
        ),
        Wrapper(
            model_type="mistral3", architecture="Mistral3ForConditionalGeneration",
            tied=True,
            keys=frozenset({"vision_config", "image_token_index", "image_token_id"})
            | {"projector_hidden_act", "vision_feature_layer", "multimodal_projector_bias"}
            | {"spatial_merge_size"},
        ),
        *(
            Wrapper(
                model_type=model_type, architecture=f"{name}ForConditionalGeneration",
                keys=_QWEN_VL_KEYS, flat=True,
            )
            for model_type, name in (
                ("qwen2_vl", "Qwen2VL"), ("qwen2_5_vl", "Qwen2_5_VL"),
                ("qwen3_vl", "Qwen3VL"),
            )
        ),
    )
}  # fmt: skip
