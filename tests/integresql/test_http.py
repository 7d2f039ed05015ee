"""What goes over the wire: bodies, paths, methods, statuses, headers, tokens; by socket where clients are polite."""

from __future__ import annotations

import json
import re
import secrets
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from cascade_state.testing import PostgresServer
from cascade_state.testing.blocking import run_blocking
from cascade_state.testing.integresql.operations import OPERATIONS
from tests.integresql.conftest import SHARED_PREFIX as PREFIX
from tests.integresql.facade import WAIT, Facade, drop_databases, facade_process

pytestmark = pytest.mark.postgres

LIMIT_OF_A_NAME = 63


@pytest.fixture
def facade(shared_facade: Facade) -> Facade:
    return shared_facade


@pytest.fixture
def http(facade: Facade) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=facade.url, timeout=WAIT, trust_env=False) as client:
        yield client


@pytest.fixture
def own() -> str:
    """A hash of this test's own."""
    return secrets.token_hex(8)


def raw(facade: Facade, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Sends bytes as they are; returns status, headers and body of the answer."""
    where = urlsplit(facade.url)
    with socket.create_connection((where.hostname, where.port), timeout=WAIT) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as stream:
            status = int(stream.readline().split()[1])
            headers = {}
            while line := stream.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            return status, headers, stream.read()


def raw_request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("kind", "encode"),
    [
        ("application/json", json.dumps),
        ("application/json; charset=utf-8", json.dumps),
        ("application/json;charset=UTF-16", lambda body: json.dumps(body).encode("utf-16")),
        ("APPLICATION/JSON", lambda body: " \n" + json.dumps(body)),
        ("application/x-www-form-urlencoded", lambda body: f"hash={body['hash']}"),
        ("application/x-www-form-urlencoded; charset=utf-8", lambda body: f"a=b&hash={body['hash']}"),
        ("application/x-www-form-urlencoded", json.dumps),  # what curl says of whatever it is given
        ("text/plain", json.dumps),
        (None, json.dumps),
        (None, lambda body: f"hash={body['hash']}"),
    ],
)
def test_a_hash_may_come_in_every_body_that_clients_send(facade: Facade, own: str, kind: Any, encode: Any) -> None:
    text = encode({"hash": own})
    body = text if isinstance(text, bytes) else text.encode()
    headers = [f"Content-Type: {kind}"] if kind else []
    status, answered, content = raw(facade, raw_request("POST", "/api/v1/templates", body, *headers))
    assert status == 200, content
    assert answered["content-type"] == "application/json"
    assert json.loads(content)["database"]["templateHash"] == own


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b"[]",
        b'"hash"',
        b'{"hash": ""}',
        b'{"hash": null}',
        b'{"hash": 7}',
        b'{"hash": ["x"]}',
        b'{"hash": "a\\u0000b"}',
        b'{"hash": "\\ud800"}',
        b'{"hash": "x"',
        b"hash=",
        b"hash=%00",
        b"hash=%ff",
        b"other=x",
        b"\xff\xfe\xfd",
        b"[" * 30_000,
        json.dumps({"hash": "x" * 1025}).encode(),
        json.dumps({"hash": "ü" * 513}).encode(),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_hash_that_cannot_be_served_is_a_bad_request(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/api/v1/templates", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert list(answer.json()) == ["message"]


def test_a_body_that_is_far_too_long_is_refused(http: httpx.Client) -> None:
    answer = http.post("/api/v1/templates", content=b"hash=" + b"x" * 70_000)
    assert answer.status_code == 413
    assert list(answer.json()) == ["message"]


HASHES = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "x" * 43,
    "x" * 1024,
    "Ümläut ✓",
    "a/b",
    "a/tests/3",
    "..",
    "a+b c?d#e&f=g",
    "quote \" and ' and ; --",
    "line\nbreak\ttab",
    "sha256-" + "0" * 32,
]


@pytest.mark.parametrize("odd", HASHES, ids=lambda odd: repr(odd[:20]))
def test_every_other_hash_goes_all_the_way(server: PostgresServer, http: httpx.Client, odd: str) -> None:
    made = http.post("/api/v1/templates", json={"hash": odd})
    assert made.status_code == 200, made.text
    database = made.json()["database"]
    assert database["templateHash"] == odd
    name = database["config"]["database"]
    assert len(name.encode()) <= LIMIT_OF_A_NAME
    assert run_blocking(server.database_exists(name))
    path = f"/api/v1/templates/{quote(odd, safe='').replace('.', '%2E')}"
    assert http.put(path).status_code == 204
    got = http.get(f"{path}/tests")
    assert got.status_code == 200
    assert got.json()["database"]["templateHash"] == odd
    assert re.fullmatch(rf"{PREFIX}_test_.+_000", got.json()["database"]["config"]["database"], re.DOTALL)
    assert http.post(f"{path}/tests/0/unlock").status_code == 204
    assert http.delete(path).status_code == 204
    assert http.put(path).status_code == 404


def test_the_answers_have_integresqls_shape(server: PostgresServer, http: httpx.Client, own: str) -> None:
    path = f"/api/v1/templates/{own}"
    template = http.post("/api/v1/templates", json={"hash": own}).json()
    assert list(template) == ["database"]
    assert set(template["database"]) == {"templateHash", "config"}
    config = template["database"]["config"]
    assert {name: type(value) for name, value in config.items()} == {
        "host": str,
        "port": int,
        "username": str,
        "password": str,
        "database": str,
    }
    assert config["database"] == f"{PREFIX}_template_{own}"
    finalized = http.put(path)
    assert (finalized.status_code, finalized.content) == (204, b"")
    test = http.get(f"{path}/tests").json()
    assert set(test) == {"id", "database"}
    assert test["id"] == 0
    assert set(test["database"]) == {"templateHash", "config"}
    assert test["database"]["config"] == config | {"database": f"{PREFIX}_test_{own}_000"}
    assert http.request("POST", f"{path}/tests/0/recreate", content=b"null").status_code == 204
    assert http.request("DELETE", f"{path}/tests/0", json=None).status_code == 204
    assert http.delete(path).status_code == 204


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/templates/unknown", 404),
        ("DELETE", "/templates/unknown", 404),
        ("GET", "/templates/unknown/tests", 404),
        ("POST", "/templates/unknown/tests/0/unlock", 404),
        ("DELETE", "/templates/unknown/tests/0", 404),
        ("POST", "/templates/unknown/tests/0/recreate", 404),
        ("POST", "/templates/unknown/tests/one/unlock", 400),
        ("DELETE", "/templates/unknown/tests/1.5", 400),
        ("POST", "/templates/unknown/tests/%31%30x/recreate", 400),
        ("DELETE", "/templates/unknown/tests/1_0", 400),
        ("PUT", "/templates/", 405),
        ("PUT", "/templates//", 400),
        ("GET", "/templates//tests", 400),
        ("PUT", "/templates/%00", 400),
        ("PUT", "/templates/%ff", 400),
        ("PUT", f"/templates/{'x' * 1025}", 400),
        ("GET", "/templates", 405),
        ("PATCH", "/templates/unknown", 405),
        ("HEAD", "/templates/unknown/tests", 405),
        ("POST", "/templates/unknown/tests", 405),
        ("GET", "/templates/unknown/tests/0", 405),
        ("OPTIONS", "/templates", 405),
        ("BREW", "/templates", 405),
        ("GET", "", 404),
        ("GET", "/nothing", 404),
        ("DELETE", "/admin", 404),
        ("GET", "/../../debug/pprof/", 404),
    ],
)
def test_statuses(facade: Facade, method: str, path: str, status: int) -> None:
    found, headers, content = raw(facade, raw_request(method, f"/api/v1{path}"))
    assert found == status
    assert headers["content-type"] == "application/json"
    if method != "HEAD":
        assert list(json.loads(content)) == ["message"]
    if status == 405:
        assert headers["allow"]
        assert method not in headers["allow"].split(", ")


def test_a_slash_at_the_end_does_not_matter(http: httpx.Client, own: str) -> None:
    assert http.post("/api/v1/templates/", json={"hash": own}).status_code == 200
    assert http.put(f"/api/v1/templates/{own}/").status_code == 204
    assert http.get(f"/api/v1/templates/{own}/tests/").status_code == 200
    assert http.post(f"/api/v1/templates/{own}/tests/0/unlock/").status_code == 204
    assert http.delete(f"/api/v1/templates/{own}/tests/0/").status_code == 204
    assert http.delete(f"/api/v1/templates/{own}/").status_code == 204


@pytest.mark.parametrize(
    "request_",
    [b"nonsense\r\n\r\n", b"GET /api/v1/ templates HTTP/1.1\r\nHost: x\r\n\r\n"],
    ids=["no request", "space in the path"],
)
def test_what_is_no_http_is_a_bad_request(facade: Facade, request_: bytes) -> None:
    assert raw(facade, request_)[0] == 400


def test_the_old_alias_gives_back_and_deletes_nothing(server: PostgresServer, http: httpx.Client, own: str) -> None:
    path = f"/api/v1/templates/{own}"
    http.post("/api/v1/templates", json={"hash": own})
    http.put(path)
    name = http.get(f"{path}/tests").json()["database"]["config"]["database"]
    assert http.delete(f"{path}/tests/0").status_code == 204
    assert http.delete(f"{path}/tests/0").status_code == 204  # not handed out: nothing to do
    assert http.post(f"{path}/tests/0/recreate").status_code == 204
    assert run_blocking(server.database_exists(name))
    assert http.delete(path).status_code == 204


def test_requests_have_ids(http: httpx.Client) -> None:
    assert http.get("/-/healthy", headers={"X-Request-Id": "mine"}).headers["x-request-id"] == "mine"
    made = http.get("/-/healthy", headers={"X-Request-Id": "not mine"}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)


def test_pages_of_other_origins_are_not_let_in_unless_asked(http: httpx.Client) -> None:
    answer = http.get("/-/healthy", headers={"Origin": "http://elsewhere.test"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/-/healthy", "/-/ready", "/metrics", "/openapi.json"])
def test_what_is_public_answers_head_too(facade: Facade, path: str) -> None:
    assert raw(facade, raw_request("GET", path))[0] == 200
    status, _, content = raw(facade, raw_request("HEAD", path))
    assert (status, content) == (200, b"")


def test_the_metrics_are_prometheus_text_and_count(http: httpx.Client, own: str) -> None:
    http.post("/api/v1/templates", json={"hash": own})
    http.put(f"/api/v1/templates/{own}")
    http.get(f"/api/v1/templates/{own}/tests")
    http.get('/api/v1/nothing"{}')
    answer = http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = {}
    for line in answer.text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP \w+ .+|TYPE \w+ (gauge|counter|histogram))", line)
            continue
        match = re.fullmatch(r'(\w+(?:\{\w+="[^"]*"(?:,\w+="[^"]*")*\})?) ([-+.\de]+)', line)
        assert match, line
        samples[match[1].removeprefix("cascade_state_testdb_")] = float(match[2])
    assert samples["postgres_up"] == 1
    assert samples['templates{state="finalized"}'] >= 1
    assert samples['databases{state="leased"}'] >= 1
    assert samples["waiting"] == 0
    assert samples["wait_seconds_count"] == samples['wait_seconds_bucket{le="+Inf"}'] >= 1
    assert samples['requests_total{operation="getTestDatabase",method="GET",status="200"}'] >= 1
    assert samples['requests_total{operation="other",method="other",status="404"}'] >= 1


def test_the_openapi_document_lists_every_operation(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    listed = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert set(listed) == {(operation.method, operation.path) for operation in OPERATIONS}
    assert len({operation["operationId"] for operation in listed.values()}) == len(OPERATIONS)
    references = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document))
    assert set(references) <= set(document["components"]["schemas"])
    for (_, path), operation in listed.items():
        names = [parameter["name"] for parameter in operation.get("parameters", [])]
        assert names == re.findall(r"{(\w+)}", path)
    assert "security" not in listed["GET", "/api/v1/templates/{hash}/tests"]


@pytest.fixture(scope="module")
def guarded(server: PostgresServer) -> Iterator[Facade]:
    prefix = f"g{secrets.token_hex(4)}"
    variables = {"INTEGRESQL_DB_PREFIX": prefix, "CASCADE_STATE_TESTDB_TOKEN": "s3cret-tökén"}
    variables |= {"INTEGRESQL_ECHO_ENABLE_CORS_MIDDLEWARE": "true", "INTEGRESQL_LOGGER_LOG_RESPONSE_BODY": "true"}
    with facade_process("--postgres-url", server.url, **variables) as started:
        yield started
    run_blocking(drop_databases(server, prefix))


def test_a_token_guards_everything_but_what_tells_nothing(guarded: Facade, own: str) -> None:
    bearer = "Bearer s3cret-tökén".encode()
    with httpx.Client(base_url=guarded.url, timeout=WAIT, trust_env=False) as http:
        for operation in OPERATIONS:
            path = operation.path.replace("{hash}", own).replace("{id}", "0")
            for headers in ({}, {b"Authorization": b"Bearer wrong"}, {b"Authorization": b"Basic s3cret"}):
                answer = http.request(operation.method, path, headers=headers, json={"hash": own})
                if operation.public:
                    assert answer.status_code == 200, path
                else:
                    assert answer.status_code == 401, path
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert list(answer.json()) == ["message"]
        headers = {b"Authorization": bearer}
        assert http.post("/api/v1/templates", json={"hash": own}, headers=headers).status_code == 200
        assert http.delete(f"/api/v1/templates/{own}", headers=headers).status_code == 204
        document = http.get("/openapi.json").json()
        assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
        assert document["paths"]["/api/v1/admin/templates"]["delete"]["security"] == [{"token": []}]


def test_pages_of_other_origins_are_let_in_when_asked(guarded: Facade) -> None:
    asked = {"Origin": "http://elsewhere.test", "Access-Control-Request-Method": "PUT"}
    answer = httpx.options(f"{guarded.url}/api/v1/templates/x", headers=asked, trust_env=False)
    assert answer.status_code == 200
    assert "PUT" in answer.headers["access-control-allow-methods"]
