"""The error tree, and the exit code of each branch.

    RaftError                 1  (never raised itself)
    ├── UsageError            2  a wrong option or argument
    ├── RecipeError           3  a recipe that does not validate; lists every mistake
    ├── InputError            4  a file, corpus or question set that cannot be used
    │   └── ArtifactError     4  an artefact that is missing, unfinished, damaged or does not fit
    ├── ModelError            5  a model that cannot be found, loaded or run
    │   └── EndpointError     5  a remote endpoint that is down, refuses, or answers nonsense
    └── CheckFailed           6  a check the user asked for did not hold

Anything else that escapes is a bug and ends with 1; Ctrl-C ends with 130.
"""

from __future__ import annotations

INTERRUPTED = 130


class RaftError(Exception):
    """``what`` happened to which value and what was expected; ``remedy`` is what to type or change next."""

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}. {self.remedy}" if self.remedy else self.what


class UsageError(RaftError):
    exit_code = 2


class RecipeError(RaftError):
    exit_code = 3


class InputError(RaftError):
    exit_code = 4


class ArtifactError(InputError):
    pass


class ModelError(RaftError):
    exit_code = 5


class EndpointError(ModelError):
    pass


class CheckFailed(RaftError):
    exit_code = 6
