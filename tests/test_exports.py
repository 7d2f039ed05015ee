"""The public face: what can be imported, what that costs, and that everything named is documented."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cascade_state
import cascade_state.testing

ROOT = Path(cascade_state.__file__).parent

# The names that the contract promises at the top.
PROMISED = {
    "Condition",
    "FlowDefinition",
    "FlowInstance",
    "FlowInstanceFilter",
    "FlowStatus",
    "NewEvent",
    "Page",
    "ScheduleTimer",
    "StepDefinition",
    "StepStatus",
    "Store",
    "TimerStatus",
    "Trigger",
    "UnitOfWork",
    "open_store",
}


def test_the_promised_names_are_exported() -> None:
    assert set(cascade_state.__all__) >= PROMISED
    for name in cascade_state.__all__:
        assert hasattr(cascade_state, name), name


def test_names_are_loaded_when_they_are_used() -> None:
    """The pytest plugin is imported into every test run of an environment, and this package with it."""
    code = (
        "import sys, cascade_state, cascade_state.testing\n"
        "print(*sorted(name for name in sys.modules if name.startswith('cascade_state')))\n"
        "cascade_state.FlowInstance, cascade_state.errors.NotFound\n"
        "assert 'cascade_state.model.flow_instances' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["cascade_state", "cascade_state.testing"]


@pytest.mark.parametrize("module", [cascade_state, cascade_state.testing])
def test_the_lazy_names_are_the_exported_ones(module: Any) -> None:
    assert list(module._HOMES) == module.__all__
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_every_error_is_exported() -> None:
    from cascade_state import errors

    assert set(errors.__all__) <= set(cascade_state.__all__)
    testing_only = {name for name in errors.__all__ if issubclass(getattr(errors, name), errors.TestDatabaseError)}
    assert testing_only <= set(cascade_state.testing.__all__)
    for name in testing_only:
        assert getattr(cascade_state, name) is getattr(cascade_state.testing, name) is getattr(errors, name)


def test_every_value_is_exported_where_values_live() -> None:
    from cascade_state import model

    values = {
        name for name in cascade_state.__all__ if getattr(cascade_state, name).__module__.startswith(model.__name__)
    }
    assert values >= {"FlowDefinition", "FlowInstance", "StepResult", "Lease"}
    assert set(model.__all__) == values
    for name in values:
        assert getattr(model, name) is getattr(cascade_state, name)


def test_no_name_is_exported_twice() -> None:
    for info in pkgutil.walk_packages([str(ROOT)], "cascade_state."):
        source = _source_of(info.name)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
                names = ast.literal_eval(node.value)
                assert len(names) == len(set(names)), info.name


def _source_of(name: str) -> str:
    path = ROOT.parent / Path(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize("statement", ["import cascade_state", "import cascade_state.testing"])
def test_importing_loads_no_database_library_and_no_back_end(statement: str) -> None:
    code = (
        f"import sys\n{statement}\n"
        "loaded = [name for name in ('sqlalchemy', 'asyncpg', 'alembic', 'pytest', 'cascade_state.postgres',\n"
        "          'cascade_state.memory') if name in sys.modules]\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_method_of_the_contract_says_what_it_does() -> None:
    from cascade_state import abc

    for name in abc.__all__:
        cls = getattr(abc, name)
        assert inspect.getdoc(cls), name
        for member, value in vars(cls).items():
            if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                assert inspect.getdoc(value), f"{name}.{member}"


def test_options_after_the_first_argument_are_keyword_only() -> None:
    """A public call reads in itself; positional arguments are only what names the thing it is about."""
    from cascade_state import abc

    for name in (
        "ComponentStates",
        "Correlations",
        "Events",
        "FlowDefinitions",
        "FlowInstances",
        "Locks",
        "ReplicaSets",
        "Timers",
    ):
        for member, value in vars(getattr(abc, name)).items():
            if member.startswith("_") or not inspect.isfunction(value):
                continue
            for parameter in inspect.signature(value).parameters.values():
                if parameter.default is not inspect.Parameter.empty and parameter.name not in (
                    "version",  # get(flow_id, version) and find(flow_id, version) name a thing together
                    "filter",  # the thing a list is about
                    "payload",  # publish(key, payload)
                    "replica_set",  # list_workers(replica_set), or those of all sets
                ):
                    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, f"{name}.{member}({parameter.name})"


def test_every_module_imports_by_itself() -> None:
    for info in pkgutil.walk_packages([str(ROOT)], "cascade_state."):
        if info.name.endswith("__main__"):
            continue
        importlib.import_module(info.name)
