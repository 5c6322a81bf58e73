"""Messages of errors are one line that a terminal shows unchanged."""

import pytest

from teacher_cache import errors
from teacher_cache.errors import RppError, UsageError, printable


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\u202egpj.exe", "\u2028", "\ud800"])
def test_messages_escape_what_a_terminal_would_interpret(text: str) -> None:
    message = str(RppError(f"no image {text}"))
    assert message == printable(f"no image {text}")
    assert message.isprintable()
    assert printable("hündchen 'é' 犬") == "hündchen 'é' 犬"


def test_errors_of_the_user_have_their_own_exit_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RppError)]
    assert len(kinds) > 5
    assert {kind.exit_code for kind in kinds if issubclass(kind, UsageError)} == {2}
    assert {kind.exit_code for kind in kinds if not issubclass(kind, UsageError)} == {1}
