"""Runs a format's table over an output: tokens and text in, events out.

What looked like a call and was none stays text where it stood, unless the output was cut there. A
call that has begun is never taken back: if the rest of it makes no sense, it is left open.
"""

import re
from collections.abc import Sequence

from protocol.formats.contract import Content, OutputEvent, Reasoning, Tool
from protocol.formats.reading.bound import BoundFormat, MarkToken
from protocol.formats.reading.calls import Calls
from protocol.formats.reading.envelope import Arguments, Envelope, JsonReader
from protocol.formats.reading.lexer import Terminals
from protocol.formats.reading.python_calls import PythonCalls
from protocol.formats.table import (
    BEGINNINGS,
    CAPTURED,
    CONTENT,
    END,
    ORIGINS,
    OTHER,
    OUTSIDE,
    START,
    VALUES,
    Takes,
    Transition,
)

_NAME = re.compile(r"""\s*[^\s<>{}\[\]()"'=,]{0,256}\s*""")
_CLOSING = frozenset(" \t\r\n}])\"'`;,")
_READ = (Takes.ENVELOPE, Takes.ARGUMENTS, Takes.LITERALS)


class FormatParser:
    """An `OutputParser` (`contract.py`) that begins in `state`."""

    def __init__(self, bound: BoundFormat, tools: Sequence[Tool], *, state: str) -> None:
        self._format, self._bound = bound.format, bound
        self._events: list[OutputEvent] = []
        self._calls = Calls(self._format, tools, self._events)
        self.state = state
        self._pending = ""
        """Not read yet: held back, or behind what is."""
        self._taken = ""
        """Of the present name, key, header or value."""
        self._is_fresh = False
        """A terminal came just before: space with which the text begins is not part of it."""
        self._is_tentative = False
        """What is being read may turn out to be no call: then all of it, which is in `_raw`, is
        text of the state `_origin`."""
        self._raw = ""
        self._origin = state
        self._reader: JsonReader | PythonCalls | None = None
        """None where JSON is read: it makes no sense any more."""

    def feed(self, token_id: int, text: str) -> Sequence[OutputEvent]:
        self._pending += text
        self._run(final=False)
        if mark := self._bound.marks.get(token_id):
            self._take_mark(mark)
        return self._new_events()

    def finish(self, *, is_cut: bool = False) -> Sequence[OutputEvent]:
        if is_cut:
            return self._new_events()
        self._run(final=True)
        if self._is_tentative:
            self._fail(self._pending)
        elif self._takes in ORIGINS and not self._is_fresh:
            self._show(self._pending)
        elif self._takes is Takes.HEADER and not self._format.restarts_in(self._taken):
            self._show(self._taken)  # no message at all
        self._pending = ""
        return self._new_events()

    def _new_events(self) -> Sequence[OutputEvent]:
        events = tuple(self._events)
        self._events.clear()
        return events

    # -- rows -----------------------------------------------------------------------------

    @property
    def _takes(self) -> Takes:
        return self._format.states[self.state]

    def _row(self, terminal: str) -> Transition | None:
        return self._format.row(self.state, terminal)

    def _take_mark(self, mark: MarkToken) -> None:
        if self._stands(mark) or (self._takes is Takes.SPACE and not mark.is_part):
            self._run(final=True)
            if self._takes is Takes.SPACE and not self._stands(mark) and self._row(OTHER):
                self._go(OTHER, "")
        if self._stands(mark):
            gap, self._pending = self._pending, ""
            self._go(mark.literal, gap + mark.shown)
        else:
            is_text = self._takes in ORIGINS or self._takes is Takes.SPACE
            self._pending += mark.shown if is_text else mark.literal
        self._run(final=False)

    def _stands(self, mark: MarkToken) -> bool:
        """Whether it is a terminal here."""
        in_string = self._takes in _READ and self._reader is not None and self._reader.in_string
        return self._row(mark.literal) is not None and not in_string

    def _cross(self, terminal: str, gap: str = "") -> bool:
        """At a terminal that is text: `gap` came before it, and what is pending begins with it."""
        row = self._row(terminal)
        assert row is not None, (self._format.name, self.state, terminal)
        consumed = 0 if row.stays or terminal in (END, OTHER) else len(terminal)
        raw, self._pending = gap + self._pending[:consumed], self._pending[consumed:]
        self._go(terminal, raw)
        return True

    def _go(self, terminal: str, raw: str) -> None:
        row = self._row(terminal)
        assert row is not None, (self._format.name, self.state, terminal)
        left, taken, self._taken = self._takes, self._taken, ""
        state = row.to
        if left is Takes.HEADER and self._format.states[state] is not Takes.HEADER:
            state = self._format.after_header(taken)
        arrived = self._format.states[state]
        self._open_tentative(left, arrived)
        if self._is_tentative:
            self._raw += raw
        if self._end_part(left, taken, arrived):
            self._arrive(state)

    def _open_tentative(self, left: Takes, arrived: Takes) -> None:
        if left in ORIGINS and arrived not in ORIGINS and arrived is not Takes.HEADER:
            self._is_tentative, self._origin, self._raw = True, self.state, ""
        elif not self._is_tentative and (arrived in BEGINNINGS or left is Takes.SPACE):
            self._calls.end()
            self._is_tentative, self._origin, self._raw = arrived not in OUTSIDE, CONTENT, ""

    def _end_part(self, left: Takes, taken: str, arrived: Takes) -> bool:
        """Whether the state that is left can be: False when it was no call after all."""
        match left:
            case Takes.NAME | Takes.ID:
                return self._begin_call(taken.strip(), is_id=left is Takes.ID)
            case Takes.HEADER if arrived not in OUTSIDE:
                if name := self._format.name_in_header(taken):
                    return self._begin_call(name)
            case Takes.KEY:
                self._calls.key(taken.strip(), arrived)
            case Takes.TYPED | Takes.STRING | Takes.JSON:
                self._calls.end_value()
        return True

    def _arrive(self, state: str) -> None:
        arrived = self._format.states[state]
        if arrived in OUTSIDE:
            self._calls.end()
        if arrived in ORIGINS and self._is_tentative:
            self._fail()
        self.state = state
        self._is_fresh = arrived in ORIGINS
        self._reader = self._new_reader(arrived)

    def _new_reader(self, takes: Takes) -> JsonReader | PythonCalls | None:
        match takes:
            case Takes.ENVELOPE:
                return Envelope(self._format.roles, is_strict=self._format.only_known)
            case Takes.ARGUMENTS:
                return Arguments()
            case Takes.LITERALS:
                return PythonCalls()
            case _:
                return None

    def _begin_call(self, name: str, *, is_id: bool = False) -> bool:
        if not name or (self._format.only_known and not self._calls.knows(name)):
            self._fail()
            return False
        self._is_tentative, self._raw = False, ""
        self._calls.begin(name, is_id=is_id)
        return True

    def _fail(self, more: str = "") -> None:
        """It was no call."""
        raw, self._raw, self._is_tentative = self._raw + more, "", False
        self.state, self._is_fresh = self._origin, False
        self._show(raw)

    # -- text -----------------------------------------------------------------------------

    def _run(self, *, final: bool) -> None:
        """Read what is pending, as far as one can; `final`: no more text comes before the next
        terminal or the end."""
        while self._read(final):
            pass

    def _read(self, final: bool) -> bool:
        """Whether to go on: a terminal was found."""
        match self._takes:
            case _ if not self._pending:
                return False
            case Takes.CONTENT | Takes.REASONING:
                return self._read_shown(final)
            case Takes.SPACE:
                return self._read_space(final)
            case _ if isinstance(self._reader, PythonCalls):
                return self._read_literals(self._reader, final)
            case _ if self._reader is not None:
                return self._read_json(self._reader, final)
            case Takes.NAME | Takes.ID:
                return self._read_name(final)
            case _:
                return self._read_until_terminal(final)

    @property
    def _terminals(self) -> Terminals:
        return self._bound.terminals[self.state]

    def _read_shown(self, final: bool) -> bool:
        text = self._pending
        if self._is_fresh:
            text = self._pending = text.lstrip()
        if self.state == START:
            return self._read_start(final)
        found = self._terminals.find(text)
        end = found.start if found else self._terminals.held_from(text, final)
        shown = text[:end] if self.state in self._bound.last_states else text[:end].rstrip()
        self._pending = text[end:] if found else text[len(shown) :]
        self._show(shown)
        return found is not None and self._cross(found.terminal, text[len(shown) : end])

    def _read_start(self, final: bool) -> bool:
        """Whether the state was left for `content`, or for what a terminal says."""
        at = len(self._pending) - len(self._pending.lstrip())
        terminal = self._terminals.at(self._pending, at)
        if terminal:
            gap, self._pending = self._pending[:at], self._pending[at:]
            return self._cross(terminal, gap)
        if at == len(self._pending) or (not final and self._terminals.may_begin(self._pending, at)):
            return False
        self.state = CONTENT
        return True

    def _show(self, text: str) -> None:
        if not text:
            return
        is_reasoning = self._takes is Takes.REASONING
        self._events.append(Reasoning(text) if is_reasoning else Content(text))
        self._is_fresh = False
        if self.state == START and text.strip():
            self.state = CONTENT

    def _read_space(self, final: bool) -> bool:
        text = self._pending
        for at, char in enumerate(text):
            terminal = self._terminals.at(text, at)
            may_come = not final and self._terminals.may_begin(text, at)
            if terminal or may_come or char not in _CLOSING:
                self._drop(at)
                return not (may_come and not terminal) and self._cross(terminal or OTHER)
        self._drop(len(text))
        return False

    def _drop(self, end: int) -> None:
        if self._is_tentative:
            self._raw += self._pending[:end]
        self._pending = self._pending[end:]

    def _read_json(self, reader: JsonReader, final: bool) -> bool:
        end, arguments = reader.read(self._pending, 0)
        self._drop(end)
        if self._is_tentative and reader.name is not None:
            self._begin_call(reader.name)
        elif self._is_tentative and (reader.done or reader.is_broken):  # of something else
            self._fail()
        if self._takes not in _READ:
            return True
        if self._calls.is_open:
            self._calls.arguments(arguments)
        return self._after_reader(reader.done, end, final)

    def _read_literals(self, reader: PythonCalls, final: bool) -> bool:
        end, call = reader.read(self._pending, 0)
        self._drop(end)
        if call is not None:
            if self._begin_call(call.name):
                self._calls.arguments(call.arguments)
                self._calls.end()
            return True
        if reader.text and not self._is_tentative:
            self._is_tentative, self._origin, self._raw = True, CONTENT, reader.text
        is_unknown = self._format.only_known and not self._calls.knows(reader.name)
        if reader.is_wrong or (reader.name and is_unknown):
            self._fail()
            return True
        return self._after_reader(reader.done, end, final)

    def _after_reader(self, is_done: bool, end: int, final: bool) -> bool:
        """It has read as far as `end`, and what is pending is no part of it."""
        if is_done:
            return self._cross(END)
        if end or not self._pending:
            return end > 0
        if terminal := self._terminals.at(self._pending, 0):
            return self._cross(terminal)
        if not final and self._terminals.may_begin(self._pending, 0):
            return False
        self._make_no_sense()
        return True

    def _make_no_sense(self) -> None:
        """What is pending cannot go on a call."""
        if self._is_tentative:
            self._fail()
        elif self._takes is Takes.LITERALS:
            self._arrive(CONTENT)
        else:
            self._reader = None

    def _read_name(self, final: bool) -> bool:
        found = self._terminals.find(self._pending)
        end = found.start if found else self._terminals.held_from(self._pending, final)
        name = self._taken + self._pending[:end]
        matched = _NAME.match(name)
        good = matched.end() if matched else 0
        if good < len(name):
            self._drop(max(0, good - len(self._taken)))
            self._fail()
            return True
        return self._read_until_terminal(final)

    def _read_until_terminal(self, final: bool) -> bool:
        found = self._terminals.find(self._pending)
        end = found.start if found else self._terminals.held_from(self._pending, final)
        text = self._pending[:end]
        self._drop(end)
        self._take(text)
        return found is not None and self._cross(found.terminal)

    def _take(self, text: str) -> None:
        if self._takes in VALUES:
            self._calls.value(text)
        elif self._takes in CAPTURED:
            self._taken += text
