"""One line for whatever a library raises, so that one file never stops the others."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def named(what: str, more: str = "") -> Iterator[None]:
    """Turns any Exception but ImportError into a ValueError of one line that names a file.

    Args:
      what: the file or folder that is read; put in front unless the message has it already.
      more: put behind.

    With INFNET_DEBUG in the environment the original is chained to it.
    """
    try:
        yield
    except ImportError:  # says itself what to install, and concerns no single file
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if not isinstance(error, ValueError | OSError):
            text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        text = text if what in text else f"{what}: {text or 'not readable'}"
        raise ValueError(text + more) from (error if os.environ.get("INFNET_DEBUG") else None)
