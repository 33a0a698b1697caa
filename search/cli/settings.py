"""Option values from the environment and the settings file.

Precedence is click's: command line, environment, file, default. An option is set by its long name, for all commands
that have it or for one: `FMNIST_SEARCH_WORKERS` or `FMNIST_SEARCH_RUN_WORKERS`; in the file, `workers = 4` at the top
or below `[run]`.
"""

import os
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.types import FloatParamType, IntParamType

from search.formatting import did_you_mean

FILE = Path("fmnist-search.toml")  # in the working directory
PREFIX = "FMNIST_SEARCH"


def options_of(command: click.Command) -> dict[str, click.Option]:
    """A command's options by their names in the settings: data-dir for --data-dir."""
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return {max(option.opts, key=len).removeprefix("--"): option for option in options}


def name_variables(command: click.Command) -> None:
    """Give each option of a command its environment variables: one for this command, one for all commands."""
    for name, option in options_of(command).items():
        own = [option.envvar] if isinstance(option.envvar, str) else option.envvar or []
        named = [f"{PREFIX}_{command.name}_{name}", f"{PREFIX}_{name}"]
        option.envvar = [*(variable.replace("-", "_").upper() for variable in named), *own]


def name_source(error: click.BadParameter) -> None:
    """Make an error name the environment variable that an invalid value came from."""
    context, option = error.ctx, error.param
    source = context.get_parameter_source(str(option.name)) if context and option else None
    if option and source is ParameterSource.ENVIRONMENT:
        error.param_hint = next(variable for variable in option.envvar or () if os.environ.get(variable))


def as_arguments(context: click.Context) -> list[str]:
    """A command's options from the environment and the file, as command-line arguments.

    Without --storage: it may contain a password, and commands find it where this one did.
    """
    arguments = []
    for name, option in options_of(context.command).items():
        # The callback of an option that is not passed to the command stores its value in `meta`.
        value = (context.params if option.expose_value else context.meta)[str(option.name)]
        from_settings = context.get_parameter_source(str(option.name)) in (
            ParameterSource.ENVIRONMENT,
            ParameterSource.DEFAULT_MAP,
        )
        if from_settings and value is not False and name != "storage":
            arguments += [f"--{name}"] if option.is_flag else [f"--{name}", str(value)]
    return arguments


def read(context: click.Context, commands: Mapping[str, click.Command]) -> dict[str, dict[str, Any]]:
    """Read the settings file as click's default map: parameter values by command.

    Raises:
        click.UsageError: the file is unreadable or not TOML, or has an unknown key or an invalid value.
    """
    try:
        content = tomllib.loads(FILE.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _error(f"{error.strerror}; make it readable, or move it away") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _error(f"not TOML: {error}") from error
    known = {name: options_of(command) for name, command in commands.items()}
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    shared = {key: value for key, value in content.items() if key not in tables}
    shareable = {key for options in known.values() for key in options}
    for key in shared.keys() & known.keys() - shareable:
        raise _error(f"{key}: is a command; write [{key}], and its options below")
    _check_keys(shared, shareable)
    _check_keys(tables, known)
    values = {}
    for command, options in known.items():
        own = tables.get(command, {})
        _check_keys(own, options, f"{command}.")
        given = {key: (key, value) for key, value in shared.items() if key in options}
        given |= {key: (f"{command}.{key}", value) for key, value in own.items()}
        checked = {options[key]: _checked(context, options[key], *keyed) for key, keyed in given.items()}
        values[command] = {str(option.name): value for option, value in checked.items()}
    return values


def _error(text: str) -> click.UsageError:
    return click.UsageError(f"{FILE}: {' '.join(text.split())}")


def _check_keys(given: Iterable[str], known: Collection[str], prefix: str = "") -> None:
    for key in given:
        if key not in known:
            raise _error(f"{prefix}{key}: is an unknown key; {did_you_mean(key, sorted(known))}")


def _checked(context: click.Context, option: click.Option, key: str, value: Any) -> Any:
    # Errors do not quote the value, which may hold a password, unless the option's type does.
    kind, types = _kind(option)
    given = value if option.multiple and isinstance(value, list) else [value]
    if not given or any(type(each) not in types or "\0" in str(each) for each in given):
        raise _error(f"{key}: should be {kind}")
    try:
        option.type_cast_value(context, given if option.multiple else value)
    except click.BadParameter as error:
        raise _error(f"{key}: {error.message}") from error
    return given if option.multiple else value


def _kind(option: click.Option) -> tuple[str, tuple[type, ...]]:
    """An option's type for an error message, and the Python types of its TOML values."""
    if option.is_flag:
        return "true or false", (bool,)
    if isinstance(option.type, IntParamType):
        return "a whole number", (int,)
    if isinstance(option.type, FloatParamType):
        return "a number", (int, float)
    return ("text, or a list of texts" if option.multiple else "text in quotes"), (str,)
