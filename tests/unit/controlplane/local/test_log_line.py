from controlplane.local.log_line import parse_line


def test_a_log_event_is_told_by_its_event_field() -> None:
    line = parse_line("decode-0", '{"level": "WARNING", "event": "slow", "seconds": 3}')
    assert (line.event, line.level, line.fields["seconds"]) == ("slow", "warning", 3)
    assert line.is_warning
    assert not line.is_plain


def test_a_traceback_line_is_plain_text() -> None:
    line = parse_line("router", 'File "x.py", line 3')
    assert line.is_plain
    assert line.event == line.text


def test_json_that_is_no_event_is_plain_text() -> None:
    for text in ("3", "[1]", '{"a": 1}', "null"):
        assert parse_line("router", text).is_plain
