from pathlib import Path

import pytest

from fmnist.hyperparameters import Hyperparameters
from search.study import definition
from search.study.definition import DefinitionError
from tests.factories import STUDY

SEARCHED = [name for name in Hyperparameters.model_fields if name != "network"]


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def written(content: str) -> Path:
        file = tmp_path / "mine.toml"
        file.write_text(content)
        return file

    return written


def mistakes(file: Path) -> list[str]:
    """The lines of a file's error, without its name."""
    with pytest.raises(DefinitionError) as error:
        definition.read(file)
    lines = str(error.value).splitlines()
    assert all(line.startswith(f"{file}: ") for line in lines)
    return [line.removeprefix(f"{file}: ") for line in lines]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("trials = 6", "trails = 6", "trails: is an unknown key; did you mean 'trials'?"),
        ("filters = 4", "filtres = 4", "defaults.filtres: is an unknown key; did you mean 'filters'?"),
        ("low = 2, high = 4", "low = 2, hihg = 4", "space.filters.hihg: is an unknown key; did you mean 'high'?"),
        (
            "[space]",
            "[space]\nsharpness = { low = 0, high = 1 }",
            "space.sharpness: is not a hyperparameter; use one of",
        ),
        ("trials = 6", 'trials = "six"', "trials: should be a valid integer, not 'six'"),
        ("trials = 6", "trials = 0", "trials: should be greater than or equal to 1, not 0"),
        ("trials = 6", "trials = true", "trials: should be a valid integer, not True"),
        ('"random"', '"rnd"', "sampler: should be 'tpe', 'gp', 'random', 'grid' or 'qmc', not 'rnd'"),
        ("low = 2, high = 4", "low = 4, high = 2", "space.filters: is empty, as low 4 is not below high 2"),
        ("low = 2, high = 4", "low = 4, high = 4", "space.filters: is empty, as low 4 is not below high 4"),
        ("low = 2, high = 4", "low = 2", "space.filters: needs low and high, or choices"),
        ("low = 2, high = 4", "choices = []", "space.filters.choices: is empty; name at least one"),
        ("low = 2, high = 4", "choices = [2, 2, 4]", "space.filters: names a choice twice"),
        ("low = 2, high = 4", "choices = [2, 4], low = 2", "space.filters: has choices and a range; keep one"),
        ("low = 2, high = 4", "low = 0, high = 4", "space.filters: 0 is invalid, should be greater than or equal to 1"),
        ("low = 2, high = 4", "low = 2.5, high = 4", "space.filters: 2.5 is invalid, should be a valid integer"),
        ("low = 2, high = 4", 'low = "a", high = 4', "space.filters.low: should be a number, not 'a'"),
        ("low = 0.0005", "low = 0.0", "space.learning_rate: is logarithmic, so low must be above 0"),
        ("low = 0.0005", "low = nan", "space.learning_rate.low: should be a number, not nan"),
        (
            "high = 0.01, log",
            "high = 7.0, log",
            "space.learning_rate: 7.0 is invalid, should be less than or equal to 1",
        ),
        (
            "low = 2, high = 4",
            "low = 2, high = 5, step = 2",
            "space.filters: does not reach high 5 from low 2 in steps",
        ),
        ("filters = 4", "filters = 9", "defaults.filters: 9 is not in space.filters; change either"),
        ("dropout = 0.0", "dropout = 1.0", "defaults.dropout: should be less than 1, not 1.0"),
        ('"random"', '"grid"', "space.learning_rate: a grid needs step or choices here"),
        ("[space]", "[spaces]", "spaces: is an unknown key; did you mean 'space'?"),
        (STUDY[STUDY.index("[space]") :], "", "space: is missing; add at least one hyperparameter"),
        ("trials = 6", "seeds = 3", 'seeds: needs sampler = "grid"'),
        ("[space]", "[[grid]]\nfilters = [4]\n[space]", 'grid: needs sampler = "grid"'),
    ],
)
def test_a_mistake_is_one_line_with_file_key_and_remedy(write, before: str, after: str, message: str) -> None:  # type: ignore[no-untyped-def]
    assert before in STUDY
    file = write(STUDY.replace(before, after, 1))
    (line,) = mistakes(file)
    assert line.startswith(message)


GRID = """\
sampler = "grid"
pruner = "none"
seeds = 3
[[grid]]
dropout = [0.0, 0.2]
[[grid]]
filters = [8, 16]
architecture = ["simple"]
"""


def test_the_space_of_a_grid_in_parts_follows_from_its_values_and_the_defaults(write) -> None:  # type: ignore[no-untyped-def]
    read = definition.read(write(GRID))
    assert {name: parameter.choices for name, parameter in read.ranges.items()} == {
        "dropout": [0.05, 0.0, 0.2],
        "filters": [20, 8, 16],
        "architecture": ["cnn", "simple"],
    }
    assert read == definition.StudyDefinition.model_validate(read.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("dropout", "dropuot", "grid.dropuot: is not a hyperparameter; did you mean 'dropout'?"),
        ("[8, 16]", "[8, 0]", "grid.filters: 0 is invalid, should be greater than or equal to 1"),
        ("[8, 16]", "8", "grid #2.filters: should be a valid list, not 8"),
        ("[8, 16]", "[]", "grid #2.filters: is empty; name at least one"),
        ("[[grid]]\nd", "[grid]\nd", "not TOML"),
        (
            "[[grid]]\nf",
            "[space]\nfilters = { low = 8, high = 20 }\n[[grid]]\nf",
            "grid #1.dropout: is not searched; add it",
        ),
    ],
)
def test_a_mistake_in_a_grid_is_one_line(write, before: str, after: str, message: str) -> None:  # type: ignore[no-untyped-def]
    assert before in GRID
    file = write(GRID.replace(before, after, 1))
    assert mistakes(file)[0].startswith(message)


SEVERAL = """\
trails = 6
[defaults]
architecture = "cnn"
filtres = 8
blocks = 9
[[start]]
architecture = "resnet"
filters = 8
[[start]]
architecture = "simple"
epochs = 99
l1 = 0.1
[[start]]
learning_rate = 0.02
[[start]]
learning_rate = 0.02
[space]
architecture = { choices = ["simple", "cnn", "resnet"] }
batch_size = { choices = [32, 128] }
dropout = { low = "a", high = 0.5 }
epochs = { low = 3, high = 9 }
learning_rate = { low = 0.001, high = 0.1, log = true }
blocks = { low = 1, high = 4, when = { architecture = ["cnn", "resnet"] } }
label_smoothing = { low = 0.0, high = 0.2, when = { architecture = "cnnn" } }
l2 = { low = 0.0, high = 0.1 }
[[space.filters]]
low = 16
high = 24
when = { architecture = "resnet" }
[[space.filters]]
low = 8
high = 12.5
when = { architecture = "cnn" }
"""


def test_all_mistakes_are_reported_at_once(write) -> None:  # type: ignore[no-untyped-def]
    file = write(SEVERAL)
    assert mistakes(file) == [
        "defaults.blocks: should be less than or equal to 4, not 9",
        "defaults.filtres: is an unknown key; did you mean 'filters'?",
        "space.dropout.low: should be a number, not 'a'",
        "trails: is an unknown key; did you mean 'trials'?",
        f"space.l2: is not a hyperparameter; use one of {', '.join(SEARCHED)}",
        "space.filters #2: 12.5 is invalid, should be a valid integer",
        "space.label_smoothing.when.architecture: 'cnnn' is not in space.architecture; did you mean 'cnn'?",
        "batch_size: the default, 64, is not in space.batch_size; set it in [defaults]",
        "start #2.epochs: 99 is not in space.epochs; change either",
        "start #2.l1: is not searched; add it to [space], or remove it here",
        "start #4: repeats start #3; remove it",
    ]


def test_a_missing_argument_of_a_network_causes_no_further_mistakes(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """After [defaults] is removed, its defaults outside the space are not reported too."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, width: int, kernel_size=5): ...\n"
    )
    file = write('[defaults]\narchitecture = "net.py:Net"\n[space]\nkernel_size = { choices = [3, 5] }\n')
    assert mistakes(file) == ["defaults.width: is missing and has no default in net.py, line 3; add it"]


CONDITIONS = """\
[space]
architecture = { choices = ["simple", "cnn"] }
dropout = { low = 0.0, high = 0.5 }
[[space.filters]]
choices = [4, 8]
when = { architecture = "simple" }
[[space.filters]]
low = 8
high = 24
when = { architecture = "cnn" }
"""


NESTED = """\
[space]
architecture = { choices = ["simple", "cnn"] }
blocks = { low = 1, high = 4, when = { architecture = "cnn" } }
residual = { choices = [false, true], when = { blocks = 3 } }
"""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", None),
        (
            'hidden = { low = 8, high = 128, when = { residual = true, architecture = "simple" } }',
            "space.hidden.when: never",
        ),
        (
            "[[start]]\narchitecture = 'simple'\nblocks = 2",
            "start #1.blocks: is searched only where architecture",
        ),
        ("[[start]]\nblocks = 2.5", "start #1.blocks: 2.5 is invalid, should be a valid integer"),
        ("[[start]]\nresidual = 1", "start #1.residual: 1 is invalid, should be a valid boolean"),
        ("[[start]]\nblocks = 2\nresidual = true", "start #1.residual: is searched only where blocks is 3;"),
        ("l1 = { choices = [0.0, 0.1], when = { blocks = 2.5 } }", "space.l1.when.blocks: 2.5 is invalid, should be"),
        ("l1 = { choices = [0.0, 0.1], when = { blocks = [1, 2] } }", None),
        (
            "kernel_size = { choices = [0, 3] }",
            "space.kernel_size: 0 means the network's default size",
        ),
        (
            'augmentation_kind = { choices = ["both", "flip+rotation"] }',
            "space.augmentation_kind: names the same",
        ),
        (
            "[[space.filters]]\nchoices = [20]\nwhen = { residual = true }\n"
            "[[space.filters]]\nchoices = [30]\nwhen = { architecture = 'simple' }",
            None,  # they exclude each other through a third hyperparameter
        ),
    ],
)
def test_conditions_may_name_conditional_hyperparameters(write, more: str, message: str | None) -> None:  # type: ignore[no-untyped-def]
    file = write(NESTED + more + "\n")
    if message is None:
        definition.read(file)
        return
    (line,) = mistakes(file)
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"simple" }', '"resnet" }', "space.filters #1.when.architecture: 'resnet' is not in space.architecture"),
        ('when = { architecture = "cnn" }', "", "space.filters: tables #1 and #2 can apply at the same time"),
        ('"cnn" }', '["cnn", "simple"] }', "space.filters: tables #1 and #2 can apply at the same time"),
        ('"cnn" }', "[] }", "space.filters #2.when.architecture: is empty; name at least one"),
        (
            "{ architecture = ",
            "{ blocks = ",
            "space.filters #1.when.blocks: is not searched, so the condition holds",
        ),
        ("{ architecture = ", "{ dropout = ", "space.filters #1.when.dropout: is a continuous range"),
        ("high = 0.5", "high = 0.5, when = { filters = 8 }", None),
        (
            '"cnn"] }',
            '"cnn"], when = { filters = 8 } }',
            "space.architecture: depends on itself through its",
        ),
        ("[4, 8]", "[4, true]", "space.filters #1: true is invalid, should be a valid integer"),
        ("high = 24", "high = 12", "filters: the default, 20, is not in space.filters where architecture is cnn; set"),
        (
            "[space]",
            'sampler = "gp"\n[space]',
            "sampler: gp does not support conditions, and space.filters has one",
        ),
        ("[space]", '[[start]]\narchitecture = "simple"\n[space]', "start #1: filters is missing, and its default"),
        (
            "[space]",
            "[[start]]\nfilters = 25\n[space]",
            "start #1.filters: 25 is not in space.filters; change",
        ),
        ("[space]", "[[start]]\nfilters = 20\n[space]", "start #1: repeats the default configuration; remove it"),
        ("[space]", 'sampler = "grid"\n[space]', "space.dropout: a grid needs step or choices here"),
        (
            "[space]",
            'sampler = "grid"\n[[grid]]\narchitecture = ["simple"]\ndropout = [0.05]\nfilters = [8, 24]\n[space]',
            "grid #1.filters: 24 is not in space.filters where architecture is simple; change either",
        ),
    ],
)
def test_a_mistake_in_conditions_or_starting_points_is_one_line(  # type: ignore[no-untyped-def]
    write, before: str, after: str, message: str | None
) -> None:
    assert before in CONDITIONS
    file = write(CONDITIONS.replace(before, after, 1))
    if message is None:
        definition.read(file)
        return
    (line,) = mistakes(file)
    assert line.startswith(message)


def test_the_size_of_a_grid_accounts_for_its_conditions(write) -> None:  # type: ignore[no-untyped-def]
    networks = ["simple", "cnn", "resnet"]
    sizes = "\n".join(
        f'[[space.filters]]\nlow = 1\nhigh = 1000\nwhen = {{ architecture = "{name}" }}' for name in networks
    )
    content = f'sampler = "grid"\n[space]\narchitecture = {{ choices = {networks} }}\n{sizes}\n'
    definition.read(write(content))  # 3,000 points; the product of all tables is 1,000,000,000
    with pytest.raises(DefinitionError, match="grid: has more than 100,000 training runs; use fewer values"):
        definition.read(write(f"seeds = 34\n{content}"))


def test_a_file_that_is_not_toml_is_reported(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DefinitionError, match=r"mine\.toml: not TOML: .*line 1"):
        definition.read(write("trials = = 6"))
    with pytest.raises(DefinitionError, match=r"absent\.toml: No such file"):
        definition.read(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\0")
    with pytest.raises(DefinitionError, match="not TOML"):
        definition.read(tmp_path / "binary.toml")


def test_flags_override_the_file(write) -> None:  # type: ignore[no-untyped-def]
    read = definition.read(write(STUDY), trials=9, pruner="median", seed=None)
    assert (read.trials, read.pruner, read.seed, read.sampler) == (9, "median", 0, "random")


@pytest.mark.parametrize("path", definition.bundled(), ids=lambda path: path.stem)
def test_every_bundled_study_is_valid_and_has_a_description(path: Path) -> None:
    assert definition.read(path).description


def test_the_default_study_searches_the_promised_hyperparameters() -> None:
    default = definition.read(definition.locate("cnn"))
    assert set(default.space) == {"epochs", "learning_rate", "dropout", "filters", "augmentation"}
    assert default.ranges["learning_rate"].log
    assert (default.sampler, default.score_on, default.trials) == ("tpe", "test", 50)
    assert default.defaults.architecture == "cnn"


def test_a_study_is_found_by_path_local_name_or_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert definition.locate("mine.toml") == Path("mine.toml")
    assert definition.locate("cnn") in definition.bundled()
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "cnn.toml").write_text(STUDY)
    assert definition.locate("cnn") == Path("studies/cnn.toml")
    with pytest.raises(DefinitionError, match="no study named 'cnnn'; did you mean 'cnn'"):
        definition.locate("cnnn")


def test_differences_name_each_changed_key(write) -> None:  # type: ignore[no-untyped-def]
    first = definition.read(write(STUDY))
    second = definition.read(
        write(STUDY.replace("high = 4", "high = 8").replace("two quick", "other")), trials=60, seed=3
    )
    assert definition.differences(first.identity(), second.identity()) == [
        "seed: 0 -> 3",
        "space.filters.high: 4 -> 8",
    ]
    assert definition.differences(first.identity(), first.identity()) == []
