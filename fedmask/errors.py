"""The one family of errors a person is meant to read: a single line that says what is wrong, where, and what to do."""


class FedmaskError(ValueError):
    """Bad input or a broken promise between server and client, told in one line."""


class MaskMismatchError(FedmaskError):
    """A mask or a base model is not the one that a recipe or an adapter names; both digests stand in the text."""


class RejectedMessage(FedmaskError):  # noqa: N818 (what it names is the message)
    """A message that must not enter any sum or model. `cause` is the short kebab-case word it is counted under."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause
