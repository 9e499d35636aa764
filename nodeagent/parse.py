"""The parsers of the settings: from the text of an environment variable to a value.

A parser returns the value, or raises ValueError with a text that completes "allowed: ". The value
is safe to use in paths, command lines and files.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

Word = TypeVar("Word", bound=StrEnum)

MAX_SECONDS: Final = 604800.0
"""A week. A longer deadline is taken for a typing error."""

MAX_PATH_BYTES: Final = 3000
MAX_NAME_BYTES: Final = 200


_TRUE: Final = ("1", "t", "T", "TRUE", "true", "True")
_FALSE: Final = ("0", "f", "F", "FALSE", "false", "False")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_MODULE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,54}")
_OBJECT = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9._-]{1,253}/)?[A-Za-z0-9._-]{1,63}=[A-Za-z0-9._-]{0,63}")
_PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_HOST = re.compile(r"[A-Za-z0-9.:%_-]{1,253}")
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Secret:
    """A value that must not appear in logs, tables or messages."""

    value: str = field(repr=False)

    def __str__(self) -> str:
        return "(set, not shown)"


def boolean(text: str) -> bool:
    """The words of Go's strconv.ParseBool: manifests are written for an entrypoint in Go."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("true or false (also 1, t, T, TRUE, True; 0, f, F, FALSE, False)")


def seconds(text: str) -> float:
    """A deadline: seconds as a plain number, more than 0 and at most a week."""
    if _SECONDS.fullmatch(text) and 0 < float(text) <= MAX_SECONDS:
        return float(text)
    raise ValueError(
        f"seconds as a plain number, more than 0 and at most {MAX_SECONDS:.0f} (a week)"
    )


def pause(text: str) -> float:
    """Seconds as a plain number, at most a week; 0 means no pause."""
    if _SECONDS.fullmatch(text) and float(text) <= MAX_SECONDS:
        return float(text)
    raise ValueError(f"seconds as a plain number, at most {MAX_SECONDS:.0f} (a week)")


def absolute_path(text: str) -> Path:
    """An absolute path of printable characters without `..`.

    Short enough that temporary names beside it and files below it stay within PATH_MAX and NAME_MAX
    (linux/limits.h).
    """
    path = Path(text)
    if not text.isprintable() or not path.is_absolute() or ".." in path.parts:
        raise ValueError("an absolute path of printable characters, without '..'")
    if (
        len(text.encode()) > MAX_PATH_BYTES
        or len(max(path.parts, key=len).encode()) > MAX_NAME_BYTES
    ):
        raise ValueError(f"a path of at most {MAX_PATH_BYTES} bytes, {MAX_NAME_BYTES} in each name")
    return path


def file_path(text: str) -> Path:
    """An absolute path that can name a file: any but `/`."""
    path = absolute_path(text)
    if path.name:
        return path
    raise ValueError("an absolute path of a file, without '..'")


def module_name(text: str) -> str:
    """The name of a kernel module, safe for modprobe(8) and for a line of modprobe.d(5)."""
    if _MODULE.fullmatch(text):
        return text
    raise ValueError("the name of a kernel module: letters, digits, '_' and '-', not '-' first")


def module_names(text: str) -> tuple[str, ...]:
    """Module names with colons between them: `mlx5_core:mlx5_ib`."""
    try:
        return tuple(module_name(name) for name in text.split(":"))
    except ValueError:
        raise ValueError("names of kernel modules with ':' between them") from None


def module_words(text: str) -> tuple[str, ...]:
    """Module names with spaces between them: `mlx5_vdpa mlx5_dpll`. The list may be empty."""
    try:
        return tuple(module_name(name) for name in text.split())
    except ValueError:
        raise ValueError("names of kernel modules with spaces between them") from None


def version(text: str) -> str:
    """A driver version. It becomes part of file names, such as the toolkit's done flag."""
    if _VERSION.fullmatch(text):
        return text
    raise ValueError(
        "a version: letters, digits, '.', '_' and '-', beginning with neither '.' nor '-'"
    )


def shell_words(text: str) -> str:
    """Words in shell syntax, with quotes: `--with-a --extra '--with-b --with-c'`."""
    if text.isprintable():
        with suppress(ValueError):
            shlex.split(text)
            return text
    raise ValueError("words as a shell reads them, on one line, every quote closed")


def secret(text: str) -> Secret:
    """A token: one word of printable characters."""
    if text.isprintable() and text.isascii() and " " not in text:
        return Secret(text)
    raise ValueError("one word of printable characters")


def member_of(words: type[Word]) -> Callable[[str], Word]:
    """A parser for the members of an enum, by their values."""

    def member(text: str) -> Word:
        try:
            return words(text)
        except ValueError:
            raise ValueError(" or ".join(words)) from None

    return member


def words_of(kind: type[Word]) -> Callable[[str], tuple[Word, ...]]:
    """A parser for members of an enum, separated by commas; `none` for no member."""

    def words(text: str) -> tuple[Word, ...]:
        if text == "none":
            return ()
        found = dict.fromkeys(text.split(","))
        if found.keys() <= {*kind}:
            return tuple(map(kind, found))
        raise ValueError(f"none, or one or more of {', '.join(kind)}, separated by commas")

    return words


def object_name(text: str) -> str:
    """The name of a Kubernetes object. It becomes part of a request's path."""
    if _OBJECT.fullmatch(text):
        return text
    raise ValueError("the name of a Kubernetes object: a-z, 0-9, '-' and '.'")


def object_names(text: str) -> tuple[str, ...]:
    """Names with commas between them: `kube-system,default`."""
    return tuple(object_name(name) for name in text.split(","))


def names_or_addresses(text: str) -> tuple[str, ...]:
    """Names of Kubernetes objects and PCI addresses, as 0000:03:00.2, with commas between them."""
    found = tuple(text.split(","))
    if all(_OBJECT.fullmatch(each) or _PCI.fullmatch(each) for each in found):
        return found
    raise ValueError("namespaces and PCI addresses (0000:03:00.2) with ',' between them")


def label_selectors(text: str) -> tuple[str, ...]:
    """`key=value` with commas between them; an object that matches any of them is selected."""
    found = tuple(text.split(","))
    if all(_LABEL.fullmatch(each) for each in found):
        return found
    raise ValueError("labels as key=value with ',' between them")


def host(text: str) -> str:
    """The name or address of a host, as the kubelet sets it."""
    if _HOST.fullmatch(text):
        return text
    raise ValueError("the name or address of a host")


def port(text: str) -> int:
    """A TCP port."""
    if text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) < 65536:
        return int(text)
    raise ValueError("a TCP port, 1 to 65535")


def present(text: str) -> bool:
    """True for any text that is not empty (NO_COLOR)."""
    return text != ""
