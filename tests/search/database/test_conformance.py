"""Optuna's own tests of storages and samplers, run on the ones of this package."""

import gc
from collections.abc import Callable, Iterator

import pytest
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, get_storage
from optuna.testing.pytest_samplers import BasicSamplerTestCase
from optuna.testing.pytest_storages import StorageTestCase

from search.database.connection import open_storage
from search.database.url import default_url
from search.worker.sampling import sampler
from tests.factories import definition
from tests.postgresql import Server


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory, postgresql: Server) -> dict[str, str]:
    return {"sqlite": default_url(tmp_path_factory.mktemp("storage")), "postgresql": postgresql.create_database()}


class TestStorage(StorageTestCase):
    @pytest.fixture(params=["sqlite", "sqlite cached", "postgresql"])
    def storage(self, request: pytest.FixtureRequest, databases: dict[str, str]) -> Iterator[BaseStorage]:
        kind, _, cached = request.param.partition(" ")
        opened = open_storage(databases[kind], "create")
        yield get_storage(opened) if cached else opened
        for study in opened.get_all_studies():  # the next test expects an empty database; creating one takes longer
            opened.delete_study(study._study_id)
        opened.engine.dispose()

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_pickle_storage(self, storage: BaseStorage) -> None:
        super().test_pickle_storage(storage)
        gc.collect()  # it leaves a connection open, which would cause a warning in another test


class TestSampler(BasicSamplerTestCase):
    @pytest.fixture(params=["tpe", "gp"])
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        return lambda: sampler(definition(sampler=request.param), 0)
