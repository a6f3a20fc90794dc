"""Every error that Sash raises on purpose.

    SashError                        1   something failed
    |-- UsageError                   2   arguments that contradict each other or make no sense
    |-- DoesNotFitError              3   more memory than there is
    |-- ModelNotFoundError           4   no such model
    |-- ServerUnreachableError       5   no server answers there
    |-- ServerRefusedError          21   a server refused a request, or broke an answer off
    |-- InputNotFoundError           6   no such file
    |-- CheckpointError              7   a file of a model is broken, or lies about itself
    |-- DiskFullError                8   no room left to write
    |-- TextEncodingError            9   a text is not UTF-8
    |-- WindowError                 10   a window that cannot be
    |-- EmptyPromptError            11   a prompt of no tokens
    |-- PinsError                   12   pins that do not fit the window
    |-- UnsupportedError            13   understood, but not something that Sash can do
    |   `-- ConfigError             14   a model's configuration is wrong or not understood
    |-- TokenizerError              15   a tokenizer or chat template is broken or missing
    |-- PromptOverflowError         16   a prompt longer than the window, where that was forbidden
    |-- DownloadError               17   a download failed; running it again resumes
    |-- QueueFullError              18   as many requests wait as may
    |-- DrainingError               19   no new requests are taken any more
    `-- NumericalError              20   the model computed numbers that are none

The number is the exit code of the command line. 130 stands for Ctrl-C.
A message names what is wrong and the remedy, in one line. A library user catches `SashError`.
"""

from __future__ import annotations

import errno


class SashError(Exception):
    """The root of the tree. `exit_code` is what the command line exits with."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class UsageError(SashError):
    """Arguments that contradict each other, or a value out of its range."""

    exit_code = 2


class DoesNotFitError(SashError):
    """The model and its caches need more memory than there is."""

    exit_code = 3


class ModelNotFoundError(SashError):
    """A model name that is neither in the catalogue, nor pulled, nor a path."""

    exit_code = 4


class ServerUnreachableError(SashError):
    """No server answers at an address."""

    exit_code = 5


class ServerRefusedError(SashError):
    """A server refused a request, or broke an answer off."""

    exit_code = 21


class InputNotFoundError(SashError):
    """A file that was named does not exist or cannot be read."""

    exit_code = 6


class CheckpointError(SashError):
    """A model file is truncated, malformed, or contradicts its own header."""

    exit_code = 7


class DiskFullError(SashError):
    """There is no room to write a file."""

    exit_code = 8


def is_disk_full(error: OSError) -> bool:
    """Whether the operating system had no room for what was written: on the disk, of a user, or in one file."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TextEncodingError(SashError):
    """A text file is not UTF-8."""

    exit_code = 9


class WindowError(SashError):
    """A window that cannot be: zero, negative, or larger than the model was trained with."""

    exit_code = 10


class EmptyPromptError(SashError):
    """A prompt of no tokens."""

    exit_code = 11


class PinsError(SashError):
    """More pins than the window has keys, or pins on a model without a window."""

    exit_code = 12


class UnsupportedError(SashError):
    """Something that was understood but that Sash does not do."""

    exit_code = 13


class ConfigError(UnsupportedError):
    """A configuration value that is wrong, or a key that could change the maths and is not understood."""

    exit_code = 14


class TokenizerError(SashError):
    """A tokenizer or a chat template is missing, broken, or refused to render."""

    exit_code = 15


class PromptOverflowError(SashError):
    """A prompt longer than the window, where the caller forbade sliding, or than an encoder has positions."""

    exit_code = 16


class DownloadError(SashError):
    """A download failed; what arrived is kept and the next run resumes."""

    exit_code = 17


class QueueFullError(SashError):
    """As many requests wait as may; a later try can succeed."""

    exit_code = 18


class DrainingError(SashError):
    """The engine takes no new requests: it finishes those it has, or has stopped."""

    exit_code = 19


class NumericalError(SashError):
    """Logits that are not finite: NaN, +inf, or nothing but -inf."""

    exit_code = 20
