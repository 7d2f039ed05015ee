"""The page of the API for test databases, from its table of operations and its table of variables."""

from __future__ import annotations

from collections.abc import Iterator

from cascade_state.testing.integresql.operations import BASE_PATH, OPERATIONS, Operation
from cascade_state.testing.integresql.variables import VARIABLES

HEAD = f"""\
# Test databases over REST

What `cascade-state testdb serve` answers; its options are on the page of the [command line](command-line.md). The API
is IntegreSQL's, version 1, under `{BASE_PATH}`. [How to use it](../how-to/other-languages.md) is a page of its own,
and a running server describes itself in `/openapi.json`.

## Requests and answers

- Bodies may be JSON or a form, with any content type or none; where none is needed, any is passed over. A slash at the
  end of a path does not matter. A hash in a path is percent-encoded.
- An error's body is `{{"message": "…"}}`. 503 comes with `Retry-After`.
- A hash may be any text of up to 1 KiB without NUL.

A template is described so; `additionalParams` is left out when there are none:

```text
{{"database": {{"templateHash": "4f2a", "config": {{"host": "127.0.0.1", "port": 5432, "username": "postgres",
  "password": "secret", "database": "integresql_template_4f2a", "additionalParams": {{"sslmode": "disable"}}}}}}}}
```

A test database has an `id` besides, an integer from 0:

```text
{{"id": 7, "database": {{"templateHash": "4f2a", "config": {{…, "database": "integresql_test_4f2a_007"}}}}}}
```

The names are IntegreSQL's. Where one would be longer than 63 bytes, `sha256-` and 32 digits of the hash's digest stand
for the hash, and the answer tells that name.

## Operations

"""

VARIABLES_HEAD = """\
## Variables

IntegreSQL's, and PostgreSQL's where IntegreSQL reads them. An option of the command wins; of several names the first
that is set counts. What cannot be read is passed over with a warning.

| variable | default | |
|---|---|---|
"""

WHO = "../how-to/other-languages.md#who-has-a-database"
GO = "Go's clients, whose helper closes its connection after the answer: 204 at once"
TAIL = f"""
## Where it differs from IntegreSQL 1.1

| | IntegreSQL | here |
|---|---|---|
| restart | everything is forgotten | nothing is |
| `GET …/tests` of a template that is discarded meanwhile | 500 | 410 |
| `DELETE` of an unknown template, `unlock` of an unknown id | 500 | 404 |
| no database in time, PostgreSQL away | 500 | 503 with `Retry-After`; it reconnects by itself |
| database of a test that has not connected for 250 ms | may be recreated under it | [is its own]({WHO}) |
| recreate, unlock, discard while somebody is connected | retried for ever, done, 500 | 423 |
| finalize while somebody is connected | 204, and no copy can be made | waits up to 30 s, then 423 ({GO}) |
| initializer that vanished | the template is never finished | after 2 minutes the next one gets it |
| finished template | anybody may change it | closed to connections, marked as template |
| long hashes | names are cut off, and may collide | digest |
| all templates together | no bound | `--max-databases` |
| credentials in the answers | the management role's | those of `INTEGRESQL_TEST_PGUSER`, which owns all, if it is set |
| forms as bodies | 400 | understood |
| pages of other origins (CORS) | let in | kept out unless asked for |
| listening | on all interfaces | on loopback |
| health, readiness, metrics, OpenAPI, token | – | there |
"""


def _entry(operation: Operation) -> Iterator[str]:
    old = " (deprecated)" if operation.deprecated else ""
    yield f"### {operation.method} {operation.path}{old}\n\n{operation.summary}"
    yield " Needs no token.\n\n" if operation.public else "\n\n"
    yield "| status | |\n|---|---|\n"
    for status, meaning in operation.all_answers.items():
        yield f"| {status} | {meaning} |\n"
    yield "\n"


def generate() -> dict[str, str]:
    """Return the page."""
    operations = "".join(part for operation in OPERATIONS for part in _entry(operation))
    variables = "".join(
        f"| {', '.join(f'`{name}`' for name in variable.names)} | {variable.default} | {variable.meaning} |\n"
        for variable in VARIABLES
    )
    return {"docs/reference/integresql.md": HEAD + operations + VARIABLES_HEAD + variables + TAIL}
