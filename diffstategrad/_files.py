"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

__all__ = ["replacing", "write_file"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, in place of `path`, which it becomes when the block ends; of
    a link, what it points to.

    Raises
    ------
    OSError
        If writing fails (full disk, no permission) or `path` is a folder or a device,
        naming it.  Nothing half-written remains, and an older file is untouched.
    """
    target = Path(path).resolve()
    try:
        if target.exists() and not target.is_file():
            raise OSError("it is there, and no file")
        # beside it, on the same disk; of its name, whose ending may say the format
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
            temporary = Path(folder) / target.name
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}"
        given = (message,) if error.errno is None else (error.errno, message)
        raise type(error)(*given) from error


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file; errors as in `replacing`.  Pictures come this way, because Pillow
    (13) takes the part of a file that a full disk has room for as written."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
