import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinship_daemon.errors import UsageError
from kinship_daemon.hub.names import check_repo_id, check_revision, slug


@pytest.mark.parametrize(
    "text", ["mistralai/Mistral-7B-v0.1", "a/b", "Qwen/Qwen2.5-7B", "01-ai/Yi_6B", "_x/y_"]
)
def test_ids_of_the_hub_are_accepted(text):
    assert check_repo_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "name", "/name", "org/", "a/b/c", "../etc", "org/..", "./x", "org/.hidden", ".org/x"),
        *("org/a b", "org/a\n", "org/a\0", "org\\a/b", "org/ä", "org/a--b", "org/a..b", "org/-a"),
        *("org/a.", "org/a.git", "org/" + "a" * 97, "~/x", "C:/x", "org/a%2e", "org/a@main"),
    ],
)
def test_what_is_no_id_is_refused_before_it_becomes_a_path(text):
    with pytest.raises(UsageError, match="is not a repo id; expected org/name"):
        check_repo_id(text)


@given(st.text(alphabet="ab./\\-~\n\0 %", max_size=12))
def test_an_accepted_id_stays_below_its_folder(tmp_path_factory, text):
    root = tmp_path_factory.getbasetemp().resolve()
    try:
        place = root / check_repo_id(text)
    except UsageError:
        return
    assert place.resolve().parent.parent == root


def test_no_two_ids_share_a_slug():
    ids = ["a/b", "a-b/c", "a/b-c", "a_b/c", "A/b"]
    slugs = {slug(repo_id) for repo_id in ids}
    assert len(slugs) == len(ids)
    assert not any("/" in text for text in slugs)


@pytest.mark.parametrize("text", ["", "../x", "a..b", "a b", "/a", "a/", "a//b", "x" * 300, "?a"])
def test_what_is_no_revision_is_refused(text):
    with pytest.raises(UsageError, match="is not a revision"):
        check_revision(text)


@pytest.mark.parametrize("text", ["main", "v0.1", "refs/pr/3", "a" * 40])
def test_revisions_are_accepted(text):
    assert check_revision(text) == text
