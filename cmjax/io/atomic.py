"""Files and folders that are written completely or not at all: under a temporary name first, which is then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["atomic_file", "atomic_folder", "check_writable", "recover_folder", "sweep"]

_HALF = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+)?")  # names that `tempfile` makes of the prefixes and suffixes below


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Provide a temporary name beside `path`; rename it to `path` on success, delete it on failure.

    Args:
      path: the file to write. Its folder must exist.

    Yields:
      A path in the same folder with the same suffix, for the body of the `with` to write.

    Raises:
      OSError: the folder is missing or not writable.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> with atomic_file(folder / "a.txt") as temporary:
      ...     _ = temporary.write_text("whole")
      >>> [p.name for p in folder.iterdir()], (folder / "a.txt").read_text()
      (['a.txt'], 'whole')
    """
    path = Path(os.path.realpath(path))  # a link stays one, and its file is replaced; one that is a loop is replaced
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _allow_reading(temporary, 0o666)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Provide a temporary folder beside `path`; it becomes `path` on success and is deleted on failure.

    Two renames replace an existing folder: readers find the old folder or the new one, and for a moment between the
    renames none. A program that is killed in that moment leaves the old folder beside it as `.NAME.old`; the next
    program that writes the folder, or loads a model or an artifact from it, puts it back (`recover_folder`). Other
    files of the old folder stay (as hard links, so this costs nothing).

    Args:
      path: the folder to write. The folder above it must exist.

    Yields:
      An empty folder, for the body of the `with` to fill.

    Raises:
      OSError: the folder above is missing or not writable, or `path` is a file.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file, not a folder.")
    recover_folder(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        _allow_reading(temporary, 0o777)
        if path.exists():
            _keep_others(path, temporary)
            _replace(path, temporary)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_folder(path: str | Path) -> None:
    """Restore the old folder if a program was killed while replacing it; otherwise do nothing.

    Args:
      path: the folder, as it was given to `atomic_folder`.
    """
    path = Path(os.path.realpath(path))
    if not path.exists():
        with contextlib.suppress(OSError):  # there is none, or another program was quicker
            _aside(path).rename(path)


def sweep(folder: str | Path) -> None:
    """Remove half-written files and folders that killed programs left in a folder.

    Args:
      folder: one that no other program writes in, new or existing.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> for name in (".a-0abcd_fg.txt", ".hidden.txt", "a.txt"):
      ...     (folder / name).touch()
      >>> sweep(folder)
      >>> sorted(path.name for path in folder.iterdir())
      ['.hidden.txt', 'a.txt']
    """
    for path in Path(folder).glob(".*-*"):
        if _HALF.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Check whether `path` can be written, without leaving a trace, so that a mistake shows before the work is done.

    Args:
      path: the file or folder to write, new or existing.

    Raises:
      FileNotFoundError: the folder above `path` does not exist.
      NotADirectoryError: the folder above `path` is a file.
      PermissionError: the folder is not writable, for any reason of the system.

    Example:
      >>> check_writable("no-such-folder/samples.png")
      Traceback (most recent call last):
      FileNotFoundError: cannot write no-such-folder/samples.png: the folder no-such-folder does not exist.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if not folder.exists():
        raise FileNotFoundError(f"cannot write {path}: the folder {folder} does not exist.")
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {folder} is a file, not a folder.")
    try:  # under a name as long as the one that is to come
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        raise PermissionError(f"cannot write {path}: {error.strerror or error} in {folder}.") from error


def _allow_reading(path: Path, mode: int) -> None:
    """Give `path` the usual permissions of a new file; temporary files are created private."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)


def _keep_others(old: Path, new: Path) -> None:
    """Link into `new` every file below `old` that `new` does not have."""
    for source in old.rglob("*"):
        target = new / source.relative_to(old)
        if source.is_dir() and not source.is_symlink():
            target.mkdir(exist_ok=True)
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError:  # a file system without hard links
                shutil.copy2(source, target, follow_symlinks=False)


def _replace(old: Path, new: Path) -> None:
    """Rename a folder to the name of another, which is removed: two renames in a row."""
    aside = _aside(old)
    while True:
        recover_folder(old)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            old.rename(aside)
            new.rename(old)
            break
        except OSError as error:
            recover_folder(old)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or not new.exists():
                raise
            # Another program has put a folder there in the meantime: replace that.
    shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path) -> Path:
    """The path of the old folder while the new one takes its name."""
    return path.with_name(f".{path.name}.old")
