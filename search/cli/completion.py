"""What a shell completes beside options and their choices: the names of studies."""

import click
from click.shell_completion import CompletionItem

COMPLETION_TIMEOUT = 2  # seconds that a shell waits for a database server


def stored(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The studies in the database that the command line so far, the environment and the settings mean."""
    return [CompletionItem(name) for name in _in_database(context) if name.startswith(incomplete)]


def startable(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Those, the ones that can be run by name, and files."""
    from search.study.definition import known

    there = stored(context, parameter, incomplete)
    new = known().keys() - {item.value for item in there}
    file = CompletionItem(incomplete, type="file")  # first, as bash forgets what comes before it
    return [file, *there, *(CompletionItem(name) for name in sorted(new) if name.startswith(incomplete))]


def _in_database(context: click.Context) -> list[str]:
    """Without Optuna, which takes a second to import. A shell has no place for an error: then there are none."""
    import sqlalchemy

    from search.database.url import StorageError, absolute, connect_args, file_of, url_of

    try:
        url = url_of(context.params.get("storage"), context.params.get("output"))
        if (file := file_of(url)) and not file.is_file():
            return []
        options = connect_args(url, COMPLETION_TIMEOUT)
        engine = sqlalchemy.create_engine(absolute(url), poolclass=sqlalchemy.NullPool, connect_args=options)
        with engine.connect() as connection:
            return list(connection.scalars(sqlalchemy.text("SELECT study_name FROM studies ORDER BY study_name")))
    except (StorageError, sqlalchemy.exc.SQLAlchemyError):
        return []
