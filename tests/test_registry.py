"""Policies by name, their settings, and presets; packages are real folders on the path."""

import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from kinship_policies.presets import preset_text
from kinship_policies.registry import find, installed, list_presets, load_preset, make
from kinship_policies.topk import TopKGreedy, TopKKinship
from kinship_storage.errors import UsageError

OURS = [
    "cma-es",
    "coefficient-gp",
    "evolver",
    "greedy-soup",
    "kinship-gain",
    "m2n2",
    "model-glue",
    "random",
    "soce",
    "soup",
    "topk-greedy",
    "topk-kinship",
]

SOURCE = '''
from dataclasses import dataclass

from pydantic import BaseModel, Field

from kinship_policies.policy import Decision


@dataclass(frozen=True)
class Lazy:
    """Never merges."""

    words: str = "not today"

    def __post_init__(self):
        if not self.words:
            raise ValueError("words must not be empty")

    def propose(self, population):
        return Decision((), population.best(1), None, self.words)


class Loose(BaseModel):
    rate: float = Field(default=0.5, gt=0, lt=1)
    on: bool = False

    def propose(self, population):
        return Decision((), (), None, "no")


class Mute:
    pass


def make_one():
    return Lazy()
'''


def install(folder: Path, package: str, entries: dict[str, str]) -> None:
    """What pip leaves behind of a package with these policies."""
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = ["[kinship_daemon.policies]", *(f"{name} = {path}" for name, path in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    (tmp_path / "lazypkg.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("lazypkg", None)


def test_the_built_in_policies_are_found_like_everybody_elses():
    assert find("topk-greedy") is TopKGreedy
    assert find("topk-kinship") is TopKKinship
    ours = [policy for policy in installed() if policy.provider.startswith("kinship-daemon ")]
    assert [policy.name for policy in ours] == OURS


def test_another_packages_policy_is_found_and_made(packages):
    install(packages, "lazy-policies", {"lazy": "lazypkg:Lazy"})
    assert make("lazy").words == "not today"
    assert make("lazy", {"words": "tomorrow"}).words == "tomorrow"
    found = next(policy for policy in installed() if policy.name == "lazy")
    assert (found.path, found.provider) == ("lazypkg:Lazy", "lazy-policies 1.2")


def test_a_class_can_be_named_by_its_path(packages):
    assert make("lazypkg:Lazy", {"words": "no"}).words == "no"
    assert make("kinship_policies.topk:TopKGreedy", {"k": 5}) == TopKGreedy(k=5)


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(UsageError) as error:
        make("topk-kinshp")
    assert str(error.value) == (
        f"no policy 'topk-kinshp'; installed: {', '.join(OURS)}; nearest: topk-kinship"
    )
    with pytest.raises(UsageError, match=r"; nearest: kinship-gain$"):
        make("kinship_gain")
    with pytest.raises(UsageError, match=r"topk-kinship$"):
        make("zzzz")


def test_a_name_that_two_provide_is_an_error_naming_both(packages):
    install(packages, "one", {"lazy": "lazypkg:Lazy"})
    install(packages, "two", {"lazy": "lazypkg:Loose", "loose": "lazypkg:Loose"})
    with pytest.raises(UsageError, match=r"one 1.2 \(lazypkg:Lazy\) and by two 1.2 \(laz"):
        make("lazy")
    assert make("loose").rate == 0.5  # the others are not in doubt


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"K": 3},
            "has no setting 'K'; known: early_stop, explore, extrapolate, k, max_founders, patie",
        ),
        ({"max_founder": 3}, "no setting 'max_founder'.*nearest: max_founders$"),
        ({"k": 1}, "k is 1; it must be an integer of at least 2$"),
        ({"k": "3"}, "k is '3'; it must be an integer of at least 2$"),
        ({"k": True}, "k is True; it must be an integer"),
        ({"max_founders": 0}, "max_founders is 0; it must be an integer of at least 2$"),
        ({"early_stop": 1.1}, "early_stop is 1.1; it must be a number from -1 to 1 or null$"),
        ({"early_stop": float("nan")}, "early_stop is nan; it must be a number from -1 to 1"),
        (
            {"patience": 0, "k": 0},
            "k is 0; .*; patience is 0; it must be .* at least 1$",
        ),
        ({"explore": "low"}, "explore is 'low'; it must be one of lowest, highest, none$"),
        ({"extrapolate": 0}, "extrapolate is 0; it must be a number above 0 and of at most 2 or n"),
    ],
)
def test_a_wrong_setting_is_told_with_what_would_do(settings, words):
    with pytest.raises(UsageError, match=f"^policy topk-kinship:? ?.*{words}") as error:
        make("topk-kinship", settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("policy", "settings", "words"),
    [
        ("random", {"pair": 3}, "has no setting 'pair'; known: .*; nearest: pairs$"),
        ("random", {"pairs": 0}, "pairs is 0; it must be an integer of at least 1$"),
        ("m2n2", {"alpha": 11.0}, "alpha is 11.0; it must be a number from 0 to 10$"),
        ("m2n2", {"uses": []}, "has no setting 'uses'; known: alpha, children, generations"),
        ("m2n2", {"layers": 0}, "layers is 0; it must be an integer of at least 1 or null$"),
        ("evolver", {"rate": 0}, "rate is 0; it must be a number above 0 and of at most 1$"),
        ("evolver", {"mate": "bset"}, "mate is 'bset'; it must be one of random, best$"),
        ("evolver", {"groups": 65}, "groups is 65; it must be an integer from 1 to 64$"),
        ("model-glue", {"treshold": 1}, "no setting 'treshold'; .*; nearest: threshold$"),
        ("model-glue", {"threshold": -2}, "threshold is -2; it must be a number from -1 to 1$"),
        ("cma-es", {"popsize": 3}, "popsize is 3; it must be an integer of at least 4 or null$"),
        ("cma-es", {"method": "slerp"}, "method is 'slerp'; .* one of linear, task_arithmetic$"),
        ("kinship-gain", {"warmup": 1}, "warmup is 1; it must be an integer of at least 2$"),
        ("kinship-gain", {"min_improvement": -1}, "min_improvement is -1; .* of at least 0$"),
    ],
)
def test_every_policys_settings_are_checked(policy, settings, words):
    with pytest.raises(UsageError, match=f"^policy {policy}:? ?.*{words}") as error:
        make(policy, settings)
    assert "\n" not in str(error.value)


def test_other_peoples_settings_are_checked_as_well(packages):
    for path, settings, words in [
        ("lazypkg:Lazy", {"word": "x"}, "no setting 'word'; known: words; nearest: words"),
        ("lazypkg:Lazy", {"words": ""}, "policy lazypkg:Lazy: words must not be empty"),
        ("lazypkg:Loose", {"rte": 1}, "no setting 'rte'; known: on, rate; nearest: rate"),
        ("lazypkg:Loose", {"rate": 1}, "rate is 1; it must be a number above 0 and below 1"),
        ("lazypkg:Loose", {"on": "maybe"}, "on is 'maybe'; it must be true or false"),
    ]:
        with pytest.raises(UsageError, match=words):
            make(path, settings)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("lazypkg:Mute", r"Mute has no method propose\(population\)"),
        ("lazypkg:make_one", "is not a class"),
        ("lazypkg:Nobody", "cannot be imported .*is it installed, or on PYTHONPATH"),
        ("nowhere.at.all:Lazy", "No module named 'nowhere'"),
        ("lazypkg:not a name", "cannot be imported"),
        ("slip:Lazy", r"cannot be imported .*SyntaxError: .*slip.py, line 1"),
        ("typo:Lazy", r"cannot be imported .*name 'undefined' is not defined"),
    ],
)
def test_what_is_no_policy_is_told(packages, path, words):
    (packages / "slip.py").write_text("def f(:\n")
    (packages / "typo.py").write_text("Lazy = undefined\n")
    with pytest.raises(UsageError, match=words):
        make(path)


def test_policies_are_values_that_cannot_be_changed():
    assert make("topk-kinship") == make("topk-kinship", {"k": 3, "early_stop": 0.9})
    with pytest.raises(ValueError, match="frozen"):
        make("topk-kinship").k = 4


def test_every_preset_is_the_policy_with_its_defaults_and_names_all_its_settings():
    assert list_presets() == tuple(OURS)
    for name in list_presets():
        settings = dict(load_preset(name))
        policy = make(settings.pop("use"), settings)
        assert policy == make(name)
        assert settings == policy.model_dump()


def test_every_preset_says_what_its_settings_do():
    for name in list_presets():
        lines = preset_text(name).splitlines()
        settings = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
        assert all(lines[i - 1].startswith("#") for i in settings)
        assert max(map(len, lines)) <= 100


def test_a_preset_of_ones_own_is_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"use": "topk-greedy", "k": 5}))
    assert load_preset(str(file)) == {"use": "topk-greedy", "k": 5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("k: 5", "names no policy; it needs a line like `use: topk-kinship`"),
        ("- use", "names no policy"),
        ("use: [", "is not YAML"),
        ("use: topk-kinship\nk: 2\nk: 3\n", "the key 'k' twice"),
        ("", "names no policy"),
    ],
)
def test_a_file_that_is_no_preset_is_told(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=words) as error:
        load_preset(str(file))
    assert "\n" not in str(error.value)


def test_an_unknown_preset_is_told():
    with pytest.raises(UsageError, match="soup, topk-greedy, topk-kinship; nearest: topk-greedy"):
        load_preset("topk-gredy")
    with pytest.raises(UsageError, match=r"cannot read the preset .*nowhere.yaml"):
        load_preset("nowhere.yaml")


def test_all_wrong_settings_are_told_at_once():
    with pytest.raises(UsageError) as error:
        make("topk-kinship", {"kk": 1, "patiens": 2, "k": 0})
    for words in ("no setting 'kk'", "no setting 'patiens'", "k is 0"):
        assert words in str(error.value)
