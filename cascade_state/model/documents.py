"""JSON documents: checked, copied and encoded in one way for both back ends.

`normalize` gives a clean copy (tuples become lists, any mapping a dict) or raises `InvalidArgument` with the
path of the offending value. `dump` encodes it, `load` decodes it. Both back ends store the encoded text, so
that what is read equals what was written, and nobody can reach a stored document through a value that was
passed in or returned.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from cascade_state.errors import InvalidArgument
from cascade_state.model.arguments import check_text
from cascade_state.types import JsonValue

__all__ = [
    "DEFAULT_MAXIMUM_BYTES",
    "MAXIMUM_DEPTH",
    "dump",
    "dump_canonical",
    "dump_search_attributes",
    "load",
    "normalize",
]

DEFAULT_MAXIMUM_BYTES = 1024 * 1024
MAXIMUM_DEPTH = 200  # Python's own encoder and PostgreSQL's parser both recurse; both take five times as much

_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False)


def _prepared(encoder: json.JSONEncoder) -> Callable[[Any], str]:
    """Returns `encoder.encode`, without the C encoder that it makes anew for each document where there is one."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return encoder.encode
    parts = make(
        None,
        encoder.default,
        json.encoder.encode_basestring,  # for ensure_ascii=False
        None,
        encoder.key_separator,
        encoder.item_separator,
        encoder.sort_keys,
        encoder.skipkeys,
        encoder.allow_nan,
    )
    return lambda value: "".join(parts(value, 0))


_encode = _prepared(_encoder)
_encode_canonical = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True, check_circular=False
).encode
load: Callable[[str], Any] = json.loads

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def dump(value: JsonValue, argument: str, *, maximum_bytes: int = DEFAULT_MAXIMUM_BYTES) -> str:
    """Returns the JSON text of `value`.

    Raises:
        InvalidArgument: The value is no JSON (NaN, NUL, a key that is no str, an unknown type), is nested
            deeper than 200 levels, or its text is longer than `maximum_bytes` of UTF-8.
    """
    if _is_plain(value, 0):
        text = _encoded(_encode, value, argument)
        if _is_storable(text):
            _check_size(text, argument, maximum_bytes)
            return text
    text = _encoded(_encode, normalize(value, argument), argument)
    _check_size(text, argument, maximum_bytes)
    return text


def dump_canonical(value: JsonValue, argument: str, *, maximum_bytes: int = DEFAULT_MAXIMUM_BYTES) -> str:
    """Returns the JSON text of `value` with its keys sorted, the form that digests are taken of."""
    text = _encoded(_encode_canonical, normalize(value, argument), argument)
    _check_size(text, argument, maximum_bytes)
    return text


def dump_search_attributes(value: JsonValue, argument: str, *, maximum_bytes: int = DEFAULT_MAXIMUM_BYTES) -> str:
    """Returns the JSON text of an object that is stored as `jsonb`.

    jsonb keeps numbers as decimals and would turn 1e308 into an integer of 309 digits, so a float that Python
    writes with a positive exponent is written out, with its ".0": a float stays a float.
    """
    clean = normalize(value, argument)
    if not isinstance(clean, dict):
        raise InvalidArgument(argument=argument, reason="must be a JSON object")
    text = _encoded(_encode, clean, argument)
    if "e+" in text:
        text = _written_out(clean)
    _check_size(text, argument, maximum_bytes)
    return text


def normalize(value: JsonValue, argument: str) -> Any:
    """Returns an independent copy of `value` made of None, bool, int, float, str, list and dict only.

    Raises:
        InvalidArgument: See `dump`; the error's `path` leads to the value, as in `$.items[2].price`.
    """
    try:
        return _plain_copy(value, 0)
    except _Unusual:
        return _copied(value, argument, ())


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a value is made of what JSON knows, so that it can be encoded as it is; texts are looked at afterwards.

    Says no to anything unusual; `normalize` then finds out what is wrong, and where. This runs for every document
    that is stored, so it looks at scalars without calling itself for them.
    """
    kind = type(value)
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return False
        items = value.values()
    elif kind is list or kind is tuple:
        items = value
    else:
        return kind in _SCALARS and (kind is not float or math.isfinite(value))
    if depth >= MAXIMUM_DEPTH:
        return False
    for item in items:
        kind = type(item)
        if kind in _SCALARS:
            if kind is float and not math.isfinite(item):
                return False
        elif not _is_plain(item, depth + 1):
            return False
    return True


_SCALARS = frozenset({str, int, float, bool, type(None)})


class _Unusual(Exception):
    """A value that has to be looked at closely."""


def _plain_copy(value: Any, depth: int) -> Any:
    """Returns a copy of a value that is as it should be, without noting on the way where it is."""
    kind = type(value)
    if kind is dict or kind is list or kind is tuple:
        if depth >= MAXIMUM_DEPTH:
            raise _Unusual
        if kind is dict:
            return {_plain_text(key): _plain_copy(item, depth + 1) for key, item in value.items()}
        return [_plain_copy(item, depth + 1) for item in value]
    if kind is str:
        return _plain_text(value)
    if kind not in _SCALARS or (kind is float and not math.isfinite(value)):
        raise _Unusual
    return value


def _plain_text(text: Any) -> Any:
    if type(text) is not str or "\x00" in text or not (text.isascii() or _is_encodable(text)):
        raise _Unusual
    return text


def _is_storable(text: str) -> bool:
    """Whether an encoded document holds neither a NUL character, which JSON writes as an escape, nor a lone surrogate.

    Says no to a text that spells the escape out, too, which is rare.
    """
    if "\\u0000" in text:
        return False
    return text.isascii() or _is_encodable(text)


def _is_encodable(text: str) -> bool:
    """Whether a text has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _copied(value: Any, argument: str, path: tuple[str | int, ...]) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is int:
        return value
    if kind is str:
        if value.isascii() and "\x00" not in value:
            return value
        return check_text(value, argument, _path_text(path))
    if kind is float:
        if math.isfinite(value):
            return value
        raise InvalidArgument(argument=argument, path=_path_text(path), reason="is NaN or infinite")
    if len(path) >= MAXIMUM_DEPTH:
        raise InvalidArgument(argument=argument, reason=f"is nested deeper than {MAXIMUM_DEPTH} levels")
    if kind is dict or isinstance(value, Mapping):
        return {_key(key, argument, path): _copied(item, argument, (*path, str(key))) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(item, argument, (*path, index)) for index, item in enumerate(value)]
    return _copied_subclass(value, argument, path)


def _copied_subclass(value: Any, argument: str, path: tuple[str | int, ...]) -> Any:
    """Copies a value whose class derives from str, int or float (an enumeration, say) as its plain base."""
    # The base's own conversion each time: a subclass may present itself in another way.
    if isinstance(value, str):
        return _copied(str.__str__(value), argument, path)
    if isinstance(value, int):
        return _copied(int.__index__(value), argument, path)
    if isinstance(value, float):
        return _copied(float.__float__(value), argument, path)
    raise InvalidArgument(
        argument=argument,
        path=_path_text(path),
        reason=f"is a {type(value).__name__}, which JSON cannot express",
    )


def _key(key: Any, argument: str, path: tuple[str | int, ...]) -> str:
    if type(key) is str and key.isascii() and "\x00" not in key:
        return key
    if not isinstance(key, str):
        raise InvalidArgument(
            argument=argument,
            path=_path_text(path),
            reason=f"has a key that is a {type(key).__name__}, not a str",
        )
    return check_text(key, argument, _path_text(path))


def _path_text(path: tuple[str | int, ...]) -> str:
    """Returns a path in the manner of JSONPath."""
    parts = ["$"]
    for part in path:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif _PLAIN_KEY.fullmatch(part):
            parts.append(f".{part}")
        else:
            parts.append(f"[{part!a}]")  # ascii(): a lone surrogate must not break whoever prints the error
    return "".join(parts)


def _encoded(encode: Any, clean: Any, argument: str) -> str:
    try:
        return encode(clean)  # type: ignore[no-any-return]
    except ValueError as error:  # an int of more digits than Python converts
        raise InvalidArgument(argument=argument, reason=f"cannot be encoded: {error}") from error


def _check_size(text: str, argument: str, maximum_bytes: int) -> None:
    if len(text) * 4 > maximum_bytes:
        size = len(text.encode())
        if size > maximum_bytes:
            raise InvalidArgument(
                argument=argument, reason=f"is {size} bytes of JSON; at most {maximum_bytes} are stored"
            )


def _written_out(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{_encode(key)}:{_written_out(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written_out, value)) + "]"
    if isinstance(value, float) and "e+" in repr(value):
        return format(value, ".1f")
    return _encode(value)
