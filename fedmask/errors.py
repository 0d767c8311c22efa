"""The one family of errors a person is meant to read: a single line that says what is wrong, where, and what to do."""

from collections.abc import Sequence

from fedmask.shown import line

MAX_DETAIL_CHARACTERS = 500
"""Of what a peer sent, the most that a rejection quotes."""


class FedmaskError(ValueError):
    """Bad input or a broken promise between server and client, told in one line, harmless whatever it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(line(message))


class ConfigError(FedmaskError):
    """Everything that is wrong with a configuration: one line a fault, `key=value: what is allowed`."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(map(line, faults))
        ValueError.__init__(self, "\n".join(self.faults))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[tuple[str, ...]]]:
        """From process to process with its faults, not with the text that they make."""
        return type(self), (self.faults,)


class MaskMismatchError(FedmaskError):
    """A mask or a base model is not the one that a recipe or an adapter names; both digests stand in the text."""


class InputsMismatchError(FedmaskError):
    """A base model has another tokenizer, or other settings of its forward pass, than what it is used with."""


class CodecError(FedmaskError):
    """Bytes that are no vector of the expected length and finite values; `cause` as of a RejectedMessage."""

    def __init__(self, detail: str, cause: str = "undecodable") -> None:
        super().__init__(detail)
        self.cause = cause


class RejectedMessage(FedmaskError):  # noqa: N818 (what it names is the message)
    """A message that must not enter any sum or model. `cause` is the short kebab-case word it is counted under.

    The detail may quote what a peer sent: it becomes one printable line of at most MAX_DETAIL_CHARACTERS.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(_one_line(detail))
        self.cause = cause


def cause_line(error: BaseException) -> str:
    """What another library's exception says, on one printable line: its last line with words in it, where libraries put
    the reason; the exception's type where it says nothing, and before a KeyError's, which is a key alone."""
    if isinstance(error, KeyError):
        return _one_line(f"KeyError: {error}")
    lines = [each.strip() for each in str(error).splitlines() if any(map(str.isalnum, each))]
    return _one_line(lines[-1]) if lines else type(error).__name__


def _one_line(text: str) -> str:
    one = line(text)
    return one if len(one) <= MAX_DETAIL_CHARACTERS else f"{one[:MAX_DETAIL_CHARACTERS]}..."
