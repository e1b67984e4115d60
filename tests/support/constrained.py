"""An engine on a fake runner whose sequences are held to grammars of the shipped vocabulary."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from support.cluster import TINY
from support.eventually import eventually
from support.fake_runner import FakeRunner
from support.observed import RecordingObserver
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models

from engine.batch import SequenceId
from engine.commands import Submission
from engine.constraint import Constraint
from engine.limits import EngineLimits
from engine.loop import Engine
from engine.sampling.grammar import Grammars
from engine.sequence import Mode, Verdict
from protocol.messages import Grammar, Sampling
from protocol.text.grammar import GrammarTokenizer, Matcher
from protocol.text.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 3},
        "n": {"type": "integer", "minimum": -20, "maximum": 99},
    },
    "required": ["name", "tags", "n"],
    "additionalProperties": False,
}
PROMPT = list(range(40, 60))


@cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.load(TINY)


@cache
def tiny_vocabulary() -> GrammarTokenizer:
    return GrammarTokenizer(tiny_tokenizer())


def json_grammar(schema: dict[str, Any], **more: Any) -> Grammar:
    """Without white space."""
    tight = {**schema, "x-guidance": {"whitespace_flexible": False}}
    return Grammar(text=f"start: %json {json.dumps(tight)}", **more)


def lark(text: str, **more: Any) -> Grammar:
    return Grammar(text=text, **more)


def words_tokenizer(*tokens: str, eos: tuple[int, ...] = ()) -> Tokenizer:
    """These are all its tokens."""
    raw = RawTokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, tokens[0]))
    raw.decoder = decoders.Fuse()
    return Tokenizer(
        raw, chat_template=None, eos_token_ids=eos, vocab_size=len(tokens), max_context_tokens=64
    )


def held_to(grammar: Grammar | None, *, max_tokens: int = 200, **more: Any) -> Sampling:
    return Sampling(seed=more.pop("seed", 1), max_tokens=max_tokens, grammar=grammar, **more)


def accepts(grammar: Grammar, tokens: Sequence[int]) -> bool:
    """Whether the tokens begin a text of the grammar, asked of a matcher of its own."""
    matcher = Matcher.compile(grammar.text, tiny_vocabulary())
    return all(matcher.accept(token_id) for token_id in tokens)


class CountedGrammars(Grammars):
    """Knows how many it has told of."""

    num_told = 0

    def compile(
        self,
        sampling: Sampling,
        outputs: Sequence[int],
        *,
        tell: Callable[[Constraint | ValueError], None],
    ) -> None:
        def counted(outcome: Constraint | ValueError) -> None:
            tell(outcome)
            self.num_told += 1

        super().compile(sampling, outputs, tell=counted)


class ConstrainedEngine:
    """Submit, wait, and look at what the observer has written down."""

    def __init__(self, *, num_blocks: int = 400, depth: int = 1, max_waiting: int = 64) -> None:
        self.tokenizer = tiny_tokenizer()
        self.runner = FakeRunner(num_blocks=num_blocks, depth=depth)
        self.observer = RecordingObserver()
        self.engine = Engine(
            runner=self.runner,
            limits=EngineLimits(
                max_running=8, max_waiting=max_waiting, token_budget=32, max_context_tokens=300
            ),
            eos_token_ids=self.tokenizer.eos_token_ids,
            compat="test",
            generations=self.runner.generations,
            observer=self.observer,
            check=True,
            grammars=(grammars := CountedGrammars(self.tokenizer, num_threads=1)),
        )
        self.grammars = grammars

    def submit(
        self,
        name: str,
        rule: Sampling,
        *,
        prompt: Sequence[int] = PROMPT,
        generated: Sequence[int] = (),
        mode: Mode = Mode.LOCAL,
        priority: int = 0,
    ) -> None:
        self.engine.submit(
            Submission(
                id=SequenceId(name), prompt=prompt, generated=generated, sampling=rule, mode=mode,
                priority=priority,
            )
        )  # fmt: skip

    def ending(self, name: str) -> Verdict:
        """Waits for it."""
        endings = self.observer.endings
        eventually(lambda: SequenceId(name) in endings, what=f"{name} has ended")
        return endings[SequenceId(name)]

    def tokens(self, name: str) -> list[int]:
        return self.observer.tokens.get(SequenceId(name), [])

    def text(self, name: str) -> str:
        return self.tokenizer.decode(self.tokens(name), skip_special_tokens=False)

    def all_back(self) -> bool:
        blocks = self.engine.stats().blocks
        return blocks.free + blocks.cached == blocks.total


@contextmanager
def constrained_engine(**options: Any) -> Iterator[ConstrainedEngine]:
    """Started, and stopped with all blocks back."""
    run = ConstrainedEngine(**options)
    run.engine.start()
    try:
        yield run
        eventually(run.all_back, what="all blocks are back")
    finally:
        run.engine.stop()
    assert not run.observer.errors
