"""The page of errors, from the classes themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import cascade_state
from cascade_state import errors
from cascade_state.errors import CascadeStateError

HEAD = """\
# Errors

Everything that cascade_state raises on purpose is a `CascadeStateError`. The tree is ordered by what you can do about
it:

| caught class | means | do |
|---|---|---|
| `UsageError` | the call cannot work as written | mend the code |
| `NotFound` | nothing is stored under this key | decide; `find` returns None instead |
| `Conflict` | somebody was first | read again, decide again |
| `StoreUnavailable`, `TransactionAborted` | not now | run the whole unit of work again; `store.run` does |
| other `StoreError` | the back end holds something unexpected | look at it |

- Nothing was written when an error was raised; only an error while committing leaves it open (`StoreUnavailable`).
- Each error carries its facts as attributes, has a message made of them, and pickles. None contains a payload or a
  password. The driver's error, where there is one, is the `__cause__`.
- `TypeError`, `AttributeError` and `CancelledError` are never wrapped.

## The tree

```text
{tree}
```

"""


def _children(error: type[CascadeStateError]) -> list[type[CascadeStateError]]:
    return [child for child in error.__subclasses__() if child.__module__ == errors.__name__]


def _bases(error: type[CascadeStateError]) -> list[str]:
    return [base.__name__ for base in error.__bases__ if not issubclass(base, CascadeStateError)]


def _tree(error: type[CascadeStateError], before: str = "") -> Iterator[str]:
    children = _children(error)
    for child in children:
        last = child is children[-1]
        bases = f" ({', '.join(_bases(child))})" if _bases(child) else ""
        yield f"{before}{'└── ' if last else '├── '}{child.__name__}{bases}"
        yield from _tree(child, before + ("    " if last else "│   "))


def _facts(error: type[CascadeStateError]) -> list[str]:
    found: dict[str, None] = {}
    for base in reversed(error.__mro__):
        if base.__module__ == errors.__name__:
            found.update(dict.fromkeys(inspect.get_annotations(base)))
    return [f"`{name}`" for name in found]


def _entry(error: type[CascadeStateError], level: int) -> Iterator[str]:
    yield f"{'#' * level} {error.__name__}\n\n{inspect.getdoc(error)}\n\n"
    facts = _facts(error)
    if facts:
        yield f"Attributes: {', '.join(facts)}\n\n"
    if not hasattr(cascade_state, error.__name__):
        yield f"Import it from `{errors.__name__}`.\n\n"
    for child in _children(error):
        yield from _entry(child, level)


def generate() -> dict[str, str]:
    """Return the page."""
    tree = "\n".join([CascadeStateError.__name__, *_tree(CascadeStateError)])
    text = HEAD.format(tree=tree) + "".join(_entry(CascadeStateError, 2))
    return {"docs/reference/errors.md": text.rstrip("\n") + "\n"}
