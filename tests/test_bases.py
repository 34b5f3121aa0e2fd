import pytest

from kinship_daemon.errors import UsageError
from kinship_daemon.hub.bases import ALIASES, Base, resolve_base


def test_an_alias_stands_for_the_repo_that_descendants_declare():
    base = resolve_base("mistral-7b")
    assert (base.name, base.id, base.revision) == ("mistral-7b", "mistralai/Mistral-7B-v0.1", None)


def test_an_alias_and_its_repo_are_one_base():
    for alias, repo_id in ALIASES.items():
        assert resolve_base(alias) == resolve_base(repo_id)


def test_a_repo_may_be_pinned():
    assert resolve_base("org/name@v1").revision == "v1"
    assert resolve_base("mistral-7b@abc").id == "mistralai/Mistral-7B-v0.1"


def test_different_bases_have_different_names_that_are_file_names(tmp_path):
    folders = [tmp_path / "x" / "base", tmp_path / "y" / "base", tmp_path / "odd näme"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    texts = ["a/b", "a-b/c", "a/b-c", "a/b@main", "a/b@x/y", "a/b@x-y", "mistral-7b"]
    names = [resolve_base(text).name for text in [*texts, *map(str, folders)]]
    assert len(set(names)) == len(names)
    for name in names:
        (tmp_path / name).mkdir()
        assert (tmp_path / name).parent == tmp_path


def test_a_folder_stands_for_the_repo_it_is_a_copy_of(tmp_path, monkeypatch):
    plain = tmp_path / "models" / "mistralai" / "Mistral-7B-v0.1"
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--org--name" / "snapshots" / commit
    for folder in (plain, cached):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    base = resolve_base(str(plain))
    assert (base.id, base.path) == ("mistralai/Mistral-7B-v0.1", plain)
    assert (resolve_base(str(cached)).id, resolve_base(str(cached)).revision) == (
        "org/name",
        commit,
    )
    monkeypatch.chdir(tmp_path / "models")
    assert resolve_base("mistralai/Mistral-7B-v0.1").path == plain
    assert resolve_base("./mistralai/Mistral-7B-v0.1").name == base.name


@pytest.mark.parametrize(("text", "nearest"), [("mistral7b", "mistral-7b"), ("dmeo", "demo")])
def test_an_unknown_alias_names_the_nearest(text, nearest):
    with pytest.raises(UsageError, match=f"nearest: {nearest};"):
        resolve_base(text)


@pytest.mark.parametrize("text", ["", "a/b/c", "a/b@../x", "./nowhere", "~/nowhere/at/all", "/"])
def test_what_cannot_be_a_base_is_refused(text):
    with pytest.raises(UsageError):
        resolve_base(text)


def test_a_model_of_the_hubs_first_days_has_no_organisation():
    assert resolve_base("gpt2") == Base("gpt2", "gpt2")
    assert resolve_base("gpt2@main").revision == "main"
