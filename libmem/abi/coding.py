"""What drivers tell the kernel of payloads that are stored in another form: a refusal."""

__all__ = ["UnfitError"]


class UnfitError(Exception):
    """The payload stays as it is; the words say why, for people.

    No MemError: nothing has failed, and nobody outside hears of it but through `explain`.
    """
