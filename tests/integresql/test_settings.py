"""Variables, names and figures: what needs no server."""

from __future__ import annotations

import hashlib
import logging
from datetime import timedelta

import pytest

from cascade_state.errors import InvalidArgument, ServerUnavailable
from cascade_state.testing.integresql.figures import Figures, Metric, exposition
from cascade_state.testing.integresql.names import Names, checked_hash
from cascade_state.testing.integresql.settings import Settings, postgres_of
from cascade_state.testing.integresql.variables import VARIABLES


def test_without_variables_the_defaults_hold() -> None:
    settings = Settings.from_environment({})
    assert (settings.host, settings.port, settings.token) == ("127.0.0.1", 5000, None)
    assert settings.postgres == "postgresql://postgres@127.0.0.1:5432/postgres"
    assert settings.root_template == "template0"
    assert settings.names == Names(digits=settings.names.digits)
    assert settings.max_pool_size == 4 * settings.initial_pool_size
    assert (settings.finalize_timeout, settings.get_timeout) == (timedelta(seconds=60),) * 2
    assert settings.request_timeout == timedelta(seconds=60)


def test_the_more_special_variable_wins() -> None:
    general = {"PGHOST": "a", "PGPORT": "1", "PGUSER": "u", "PGPASSWORD": "p", "USER": "me"}
    assert Settings.from_environment(general).postgres == "postgresql://u:p@a:1/postgres"
    special = {f"INTEGRESQL_{name}": f"{value}2" for name, value in general.items()}
    settings = Settings.from_environment(general | special | {"INTEGRESQL_PGDATABASE": "d"})
    assert settings.postgres == "postgresql://u2:p2@a2:12/d"
    assert Settings.from_environment({"USER": "me"}).postgres.username == "me"
    assert Settings.from_environment({"USER": "me", "PGUSER": ""}).postgres.username == "me"


def test_every_variable_is_read() -> None:
    values = {
        "INTEGRESQL_ADDRESS": ("host", "10.0.0.1"),
        "INTEGRESQL_PORT": ("port", 5001),
        "INTEGRESQL_ROOT_TEMPLATE": ("root_template", "template1"),
        "INTEGRESQL_TEST_PGUSER": ("test_username", "owner"),
        "INTEGRESQL_TEST_PGPASSWORD": ("test_password", "secret"),
        "INTEGRESQL_TEST_INITIAL_POOL_SIZE": ("initial_pool_size", 1),
        "INTEGRESQL_TEST_MAX_POOL_SIZE": ("max_pool_size", 100),
        "INTEGRESQL_TEST_DB_MINIMAL_LIFETIME_MS": ("minimal_lifetime", timedelta(milliseconds=7)),
        "INTEGRESQL_TEMPLATE_FINALIZE_TIMEOUT_MS": ("finalize_timeout", timedelta(milliseconds=8)),
        "INTEGRESQL_TEST_DB_GET_TIMEOUT_MS": ("get_timeout", timedelta(milliseconds=9)),
        "INTEGRESQL_ECHO_REQUEST_TIMEOUT_MS": ("request_timeout", timedelta(milliseconds=10)),
        "INTEGRESQL_ECHO_ENABLE_CORS_MIDDLEWARE": ("cors", True),
        "INTEGRESQL_ECHO_ENABLE_REQUEST_ID_MIDDLEWARE": ("request_ids", False),
        "INTEGRESQL_ECHO_ENABLE_TRAILING_SLASH_MIDDLEWARE": ("trailing_slash", False),
        "INTEGRESQL_ECHO_ENABLE_LOGGER_MIDDLEWARE": ("log_requests", False),
        "INTEGRESQL_LOGGER_LEVEL": ("log_level", logging.WARNING),
        "INTEGRESQL_LOGGER_REQUEST_LEVEL": ("request_log_level", logging.DEBUG),
    }
    texts = {
        timedelta: lambda value: f"{value / timedelta(milliseconds=1):.0f}",
        bool: lambda value: str(value).lower(),
    }
    environment = {name: texts.get(type(value), str)(value) for name, (_, value) in values.items()}
    environment |= {"INTEGRESQL_LOGGER_LEVEL": "warn", "INTEGRESQL_LOGGER_REQUEST_LEVEL": "DEBUG"}
    settings = Settings.from_environment(environment)
    for setting, value in values.values():
        assert getattr(settings, setting) == value, setting
    assert settings.names.digits == 4
    logged = {f"INTEGRESQL_LOGGER_LOG_{part}": "1" for part in ("REQUEST_BODY", "RESPONSE_HEADER")}
    settings = Settings.from_environment(logged | {"INTEGRESQL_DB_PREFIX": "p", "INTEGRESQL_TEST_DB_PREFIX": "q"})
    assert (settings.logged.request_body, settings.logged.response_header, settings.logged.request_query) == (1, 1, 0)
    assert (settings.names.prefix, settings.names.template_prefix, settings.names.test_prefix) == ("p", "template", "q")


def test_the_waits_follow_the_time_out_of_requests_unless_they_are_given() -> None:
    settings = Settings.from_environment({"INTEGRESQL_ECHO_REQUEST_TIMEOUT_MS": "5"})
    assert {settings.finalize_timeout, settings.get_timeout, settings.request_timeout} == {timedelta(milliseconds=5)}
    settings = Settings.from_environment({"INTEGRESQL_ECHO_ENABLE_REQUEST_TIMEOUT_MIDDLEWARE": "false"})
    assert settings.request_timeout is None


def test_what_cannot_be_read_is_passed_over_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    nonsense = {name: "nonsense" for variable in VARIABLES for name in variable.names if variable.read is not str}
    assert Settings.from_environment(nonsense | {"INTEGRESQL_PORT": "65536"}) == Settings.from_environment({})
    assert Settings.from_environment({"INTEGRESQL_TEST_MAX_POOL_SIZE": "-1"}) == Settings.from_environment({})
    assert all(name in caplog.text for name in nonsense)
    assert "nonsense" not in caplog.text  # it may be a password that slipped


@pytest.mark.parametrize(
    ("initial", "largest", "found"), [(0, 5, (1, 5)), (9, 5, (5, 5)), (0, 0, (1, 1)), (2, 3, (2, 3))]
)
def test_sizes_are_made_to_fit(initial: int, largest: int, found: tuple[int, int]) -> None:
    settings = Settings().changed(initial_pool_size=initial, max_pool_size=largest)
    assert (settings.initial_pool_size, settings.max_pool_size) == found


def test_secrets_are_not_shown() -> None:
    settings = Settings().changed(token="t0ken", postgres_password="passw0rd", test_password="passw1rd")
    assert not any(secret in repr(settings) for secret in ("t0ken", "passw0rd", "passw1rd"))


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("postgresql://me:p%40@h:7/d", "postgresql://me:p%40@h:7/d"),
        ("postgresql+asyncpg://me@h", "postgresql://me@h:5432/postgres"),
        ("postgresql://me@/d?host=/run/pg", "postgresql://me@/d?host=/run/pg&port=5432"),
        ("postgresql://h/?user=me&password=x&dbname=d&port=7", "postgresql://me:x@h:7/d"),
        ("postgres://me@h/d?sslmode=require", "postgresql://me@h:5432/d?sslmode=require"),
    ],
)
def test_a_url_of_postgresql_is_taken_apart(url: str, found: str) -> None:
    assert postgres_of(url, {}) == found


def test_a_url_of_postgresql_is_completed_by_variables() -> None:
    environment = {"PGHOST": "h", "PGPORT": "7", "PGUSER": "me", "PGPASSWORD": "x"}
    assert postgres_of("postgresql://", environment) == "postgresql://me:x@h:7/postgres"
    assert postgres_of("postgresql://", {}).username


@pytest.mark.parametrize("url", ["postgresql://a,b/d", "postgresql://h:x/d", "postgresql:///d?host=a,b"])
def test_a_url_that_clients_cannot_be_told_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument):
        postgres_of(url, {})
    with pytest.raises(ServerUnavailable):
        postgres_of("mysql://h", {})


# ----- Names


def test_the_names_are_integresqls() -> None:
    names = Names()
    assert names.template("abc") == "integresql_template_abc"
    assert names.tests("abc") == "integresql_test_abc"


def test_a_long_hash_is_named_by_its_digest() -> None:
    names = Names()
    for length in range(1, 100):
        template_hash = "x" * length
        digest = f"sha256-{hashlib.sha256(template_hash.encode()).hexdigest()[:32]}"
        fits = len(f"integresql_template_{template_hash}") <= 63
        assert names.template(template_hash) == f"integresql_template_{template_hash if fits else digest}"
        fits = len(f"integresql_test_{template_hash}_000") <= 63
        assert names.tests(template_hash) == f"integresql_test_{template_hash if fits else digest}"


def test_no_hash_can_be_made_to_look_like_the_digest_of_another() -> None:
    names = Names()
    long = "x" * 100
    posing = names.template(long).removeprefix(names.all_templates)
    assert names.template(posing) != names.template(long)
    assert names.tests(posing) != names.tests(long)


def test_numbers_of_large_pools_fit_too() -> None:
    names = Names(digits=6)
    for length in (40, 41, 1000):
        assert len(f"{names.tests('x' * length)}_999999".encode()) <= 63


@pytest.mark.parametrize(
    "parts",
    [
        {"template_prefix": "test"},
        {"prefix": "x" * 20},
        {"prefix": "a\0b"},
        {"test_prefix": "ü" * 8, "digits": 6},
    ],
)
def test_prefixes_that_cannot_work_are_refused(parts: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        Names(**parts)  # type: ignore[arg-type]


def test_a_hash_is_checked() -> None:
    assert checked_hash("ü" * 512) == "ü" * 512
    for bad in ("", None, 7, "a\0", "\ud800", "x" * 1025):
        with pytest.raises(InvalidArgument):
            checked_hash(bad)


# ----- Figures


def test_waits_are_counted_in_buckets_that_add_up() -> None:
    figures = Figures()
    for seconds in (0.0005, 0.001, 0.2, 100.0):
        figures.count_wait(seconds)
    text = exposition(figures.metrics())
    assert 'cascade_state_testdb_wait_seconds_bucket{le="0.001"} 2\n' in text
    assert 'cascade_state_testdb_wait_seconds_bucket{le="0.25"} 3\n' in text
    assert 'cascade_state_testdb_wait_seconds_bucket{le="60.0"} 3\n' in text
    assert 'cascade_state_testdb_wait_seconds_bucket{le="+Inf"} 4\n' in text
    assert "cascade_state_testdb_wait_seconds_sum 100.2" in text


def test_labels_are_escaped() -> None:
    metric = Metric(name="x", kind="gauge", meaning="X.", samples=[("", {"a": 'q"\\\n'}, 1)])
    assert exposition([metric]).endswith('cascade_state_testdb_x{a="q\\"\\\\\\n"} 1\n')
