"""Shell completion of study names."""

import click
from click.shell_completion import CompletionItem

COMPLETION_TIMEOUT = 2  # seconds to wait for a database server


def stored(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete names of studies in the database given by the command line so far, the environment or the settings."""
    return [CompletionItem(name) for name in _study_names(context) if name.startswith(incomplete)]


def startable(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete stored studies, studies of the catalogue, and files."""
    from search.study.definition import known

    existing = stored(context, parameter, incomplete)
    new = known().keys() - {item.value for item in existing}
    file = CompletionItem(incomplete, type="file")  # first: bash drops the items before it
    return [file, *existing, *(CompletionItem(name) for name in sorted(new) if name.startswith(incomplete))]


def _study_names(context: click.Context) -> list[str]:
    # By SQL: importing Optuna takes a second. A shell cannot show an error, so an error yields no names.
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
