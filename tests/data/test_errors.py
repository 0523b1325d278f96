from data.errors import reason


def test_a_reason_is_part_of_one_line() -> None:
    assert reason(OSError("no\n  such \t file")) == "no such file"
    assert reason(KeyError()) == "KeyError"
    assert reason(ValueError(" \n")) == "ValueError"
    assert len(reason(ValueError("long " * 100))) == 100
