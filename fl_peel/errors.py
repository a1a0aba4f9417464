"""What can go wrong: every mistake that a user can correct is an :class:`FlPeelError`.

Messages are one line, name the place (file and line, key path, profile name) and the remedy.
"""

MAX_MESSAGE = 2000
"""Characters: what quotes more than a screenful of its input hides what it says."""


def shortened(text: str, most: int) -> str:
    """A text of at most ``most`` characters; of a longer one, its begin and its end, where remedies are."""
    if len(text) <= most:
        return text
    end = (most - 3) // 3
    return f"{text[: most - 3 - end]}...{text[-end:]}"


class FlPeelError(Exception):
    """A mistake that the user can correct. Its text is one line that names the place and the remedy.


    public: whether that line says nothing that one machine alone knows (a path, what is in a file), so that a node may
    send it to the server.
    """

    def __init__(self, message: object = "", *, public: bool = False) -> None:
        super().__init__(shortened(str(message), MAX_MESSAGE))
        self.public = public


class ScenarioError(FlPeelError):
    """A scenario key is unknown, of the wrong type or out of range."""


class DataError(FlPeelError):
    """A data set cannot be found, fetched, verified or read."""


class ProfileError(FlPeelError):
    """A device profile or a budget trace makes no sense."""


class BudgetError(FlPeelError):
    """A memory budget cannot hold what it must hold."""


class ArtifactError(FlPeelError):
    """A stored elastic embedding is not what it claims to be."""


class ModelError(FlPeelError):
    """A saved model cannot be read, or has not what is asked of it."""


class SecureAggregationError(FlPeelError):
    """A device or the server refuses a message of secure aggregation: it was changed, repeated, or asks too much."""


class MessageError(FlPeelError):
    """A message is not what it must be: something is missing or unknown, or of another type, shape or range."""


class MissingExtraError(FlPeelError):
    """Something needs a package of an extra, such as ``fl-peel[pandas]``, that is not installed."""


class EngineError(FlPeelError):
    """The Flower engine failed: no nodes, no replies, or packages from two roots."""


class LostMachineError(EngineError):
    """A machine has left the cluster during a run; the same run may go on on the others."""


class ReportError(FlPeelError):
    """A result is incomplete or not finite, or its files cannot be written or read."""


PathPart = str | int


class FieldError(ValueError):
    """A value that makes no sense; ``path`` leads from the field being checked to the place inside it."""

    def __init__(self, message: str, *path: PathPart) -> None:
        super().__init__(message)
        self.path = path
