"""The one family of errors that this project raises on purpose.

In: every error that a user can cause or must act on. Each message says what is wrong, what was
expected, what was found, and what to do next. Left out: invariants of our own code, which are
plain `assert` and `ValueError`.

`exit_code` is what the command line ends with: 2 when the user's input is wrong, 1 when a check
failed on data that had been good.
"""

from __future__ import annotations

from collections.abc import Sequence


class ConcentrateError(Exception):
    """Base of the family; the command line prints it without a traceback."""

    exit_code = 2


class ProblemListError(ConcentrateError):
    """An error that reports every problem at once instead of the first one.

    Args:
        subject: What was checked, e.g. a file name.
        problems: One complete sentence per problem.
    """

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        self.subject = subject
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{subject}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...]]]:
        """Rebuild from the two arguments, so that the error survives a process boundary."""
        return type(self), (self.subject, self.problems)


class ConfigError(ProblemListError):
    """The project file is wrong."""


class SchemaMismatchError(ProblemListError):
    """A store is not the one that was expected; lists every differing field."""


class LabelSpaceError(ProblemListError):
    """A class list does not fit the label space; names every class at fault."""


class ManifestError(ConcentrateError):
    """The sample manifest is unreadable, altered, or not an extension of the one expected."""


class DataError(ConcentrateError):
    """A source of images cannot be read as asked."""


class UnreadableImageError(DataError):
    """One image does not decode; the manifest builder turns it into a quarantine entry."""


class TeacherError(ConcentrateError):
    """A teacher cannot be built or loaded as asked."""


class TeacherOutputError(ConcentrateError):
    """A teacher returned NaN, Inf or the wrong shape; names teacher, row and view."""

    exit_code = 1


class StoreError(ConcentrateError):
    """A store cannot be opened or written as asked."""


class BusyError(StoreError):
    """Another process holds the right to write; it may let go."""


class MissingLabelError(StoreError):
    """A label that was asked for has not been written."""


class CorruptLabelError(StoreError):
    """Stored bytes disagree with their commit record or checksum."""

    exit_code = 1


class CheckFailedError(ProblemListError):
    """A verification ran to its end and found damage."""

    exit_code = 1


class TrainingError(ConcentrateError):
    """Training cannot start or cannot go on, e.g. a loss that is not finite."""

    exit_code = 1
