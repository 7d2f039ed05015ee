"""What there is to tell, from the process of a test to the terminal.

A test's report carries it (pytest-xdist sends reports from worker to terminal as plain data): the server and templates
that were used first in that process, and the database that was kept. Passwords are masked before anything leaves.
"""

from __future__ import annotations

from typing import Any

import pytest

from cascade_state.testing.masking import masked_text, masked_url
from cascade_state.testing.pytest_plugin.options import header_of
from cascade_state.testing.pytest_plugin.run import RUN, Run

__all__ = ["USE", "Reporter", "Use", "settle"]

_ATTRIBUTE = "cascade_state"
_SHOWN_LIMIT = 20


class Use:
    """One test's use of its database."""

    def __init__(self, database: Any) -> None:
        self.database = database
        self.failed = False


USE = pytest.StashKey[Use]()


def settle(item: pytest.Item, report: pytest.TestReport) -> None:
    """Notes the outcome of a phase; after the last one, keeps the database or drops it."""
    run = item.config.stash.get(RUN, None)
    if run is None:
        return
    if report.failed and run.options.url:
        _mask(report, run.options.url)
    told: dict[str, Any] = {}
    use = item.stash.get(USE, None)
    if use is not None:
        told = _settle_database(run, item, report, use)
    if run.facts and report.when == "teardown":
        told["facts"] = dict(run.facts)
        run.facts.clear()
    if told:
        setattr(report, _ATTRIBUTE, told)


def _settle_database(run: Run, item: pytest.Item, report: pytest.TestReport, use: Use) -> dict[str, Any]:
    use.failed = use.failed or report.failed
    keep = run.options.keep == "all" or (run.options.keep == "failed" and use.failed)
    shown = masked_url(use.database.url)
    if report.failed and keep:
        report.sections.append(("test database", f"kept for you: {shown}"))
    if report.when != "teardown":
        return {}
    del item.stash[USE]
    run.databases.take_back(use.database, keep=keep)
    return {"kept": shown} if keep else {}


def _mask(report: pytest.TestReport, url: str) -> None:
    text = report.longreprtext
    if masked_text(text, url) != text:
        report.longrepr = masked_text(text, url)
    report.sections = [(name, masked_text(content, url)) for name, content in report.sections]


class Reporter:
    """The terminal's side of a test run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._shown: set[str] = set()
        self.kept: list[tuple[str, str]] = []

    def pytest_report_header(self) -> str | None:
        """Says which server and migrations will be used, where the project chose any."""
        return header_of(self._config)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collects what a test's process has to tell; says at the first use which server and template it is."""
        told = getattr(report, _ATTRIBUTE, None)
        if told is None:
            return
        if "kept" in told:
            self.kept.append((report.nodeid, told["kept"]))
        for line in _lines_about(told.get("facts", {})):
            self._say_once(line)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Names the databases that were kept."""
        if not self.kept:
            return
        terminalreporter.section("test databases kept")
        for test, url in self.kept[:_SHOWN_LIMIT]:
            terminalreporter.write_line(f"{test}\n    {url}")
        if len(self.kept) > _SHOWN_LIMIT:
            terminalreporter.write_line(f"… and {len(self.kept) - _SHOWN_LIMIT} more")
        until = " for a day" if self._is_given_server() else ", and their server, until the next run of this project"
        terminalreporter.write_line(f"They stay{until}; --keep-databases=none keeps none.")

    def _is_given_server(self) -> bool:
        from cascade_state.testing.pytest_plugin.options import options_of

        return options_of(self._config).url is not None

    def _say_once(self, line: str) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if line in self._shown or terminal is None or self._config.get_verbosity() < 0:
            return
        self._shown.add(line)
        terminal.ensure_newline()
        terminal.write_line(line)


def _lines_about(facts: dict[str, Any]) -> list[str]:
    """Returns a line for each template; the processes of a run tell the same, but for who made it."""
    server = f"cascade_state: PostgreSQL {facts['server']}" if "server" in facts else "cascade_state"
    templates = facts.get("templates", {})
    if not templates:
        return [server] if "server" in facts else []
    return [f"{server}, template {name} (hash {digest})" for name, digest in templates.items()]
