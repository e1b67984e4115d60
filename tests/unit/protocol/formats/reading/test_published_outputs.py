import pytest
from support.outputs import Said, joined, read_tokens, say, steps
from support.published_outputs import FAMILIES, PUBLISHED, TOOLS, Published


def _facts(said: Said) -> tuple[object, ...]:
    return said.content, said.reasoning, said.named


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: f"{case.family}: {case.text[:30]}")
def test_what_families_write_is_read_as_they_mean_it(case: Published) -> None:
    family = FAMILIES[case.family]
    tokenizer = family.tokenizer()
    prompt = tokenizer.encode(family.generation_prompt + case.prompt_ends)
    formats = family.formats(tokenizer)
    output = formats.open(tools=TOOLS if formats.tools else (), prompt_ids=prompt)
    assert output.new_parser is not None

    said = read_tokens(tokenizer, output, case.text)

    assert _facts(said) == (case.content, case.reasoning, case.calls)
    whole = joined(steps(tokenizer, output.marks, case.text), output.marks)
    assert _facts(say(output.new_parser(), whole)) == _facts(said)
