import errno
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kinship_daemon.durable import hash_file
from kinship_daemon.errors import KinshipError, Transient, UsageError
from kinship_daemon.hub import folder as folder_module
from kinship_daemon.hub.folder import FolderHub
from kinship_daemon.hub.open import open_hub
from kinship_daemon.hub.records import UnknownRepo
from kinship_daemon.hub.triage import Rules, refusal

BASE = "org/base"


def make(root: Path, repo_id: str, front: str | None = f"base_model: {BASE}", age: int = 0) -> Path:
    place = root / repo_id
    place.mkdir(parents=True)
    save_file({"w": torch.full((4,), float(len(repo_id)))}, place / "model.safetensors")
    (place / "config.json").write_text('{"architectures": ["MistralForCausalLM"]}')
    (place / "tokenizer.json").write_text("{}")
    if front is not None:
        (place / "README.md").write_text(f"---\n{front}\n---\n# {repo_id}\n")
    for path in place.iterdir():
        os.utime(path, (2_000_000_000 - age,) * 2)
    return place


@pytest.fixture
def root(tmp_path):
    place = tmp_path / "hub"
    make(place, BASE, "license: mit", age=900)
    make(place, "org/old", f"base_model: {BASE}\nlicense: apache-2.0", age=500)
    make(place, "org/new", f"base_model: [org/x, {BASE}]\ntags: [a]", age=100)
    make(place, "org/stranger", "base_model: org/another")
    make(place, "org/silent", None)
    return place


@pytest.fixture
def hub(root):
    return FolderHub(root)


def test_descendants_are_those_that_declare_the_base_oldest_first(root, hub):
    make(root, "zed/same-age", age=500)
    assert [line.id for line in hub.descendants(BASE)] == ["org/old", "zed/same-age", "org/new"]


def test_a_repo_tells_card_config_and_files_with_their_hashes(root, hub):
    repo = hub.repo("org/old")
    assert repo.card == {"base_model": BASE, "license": "apache-2.0"}
    assert repo.config["architectures"] == ["MistralForCausalLM"]
    assert [file.path for file in repo.files] == sorted(
        p.name for p in (root / "org/old").iterdir()
    )
    assert all(file.sha256 == hash_file(root / "org/old" / file.path) for file in repo.files)
    assert refusal(repo, BASE, Rules()) is None


def test_the_revision_names_the_content_and_nothing_else(root, hub, tmp_path):
    before = hub.repo("org/old").revision
    shutil.copytree(root, tmp_path / "elsewhere")
    (tmp_path / "elsewhere/org/old/config.json").touch()
    assert FolderHub(tmp_path / "elsewhere").repo("org/old").revision == before
    (root / "org/old/README.md").write_text("# changed")
    changed = hub.repo("org/old").revision
    (root / "org/old/README.md").rename(root / "org/old/READYOU.md")
    assert len({before, changed, hub.repo("org/old").revision}) == 3


def test_an_older_revision_is_gone(root, hub):
    before = hub.repo("org/old")
    assert hub.repo("org/old", before.revision[:10]) == before
    (root / "org/old/config.json").write_text("{}")
    with pytest.raises(UnknownRepo, match="a folder hub keeps no"):
        hub.repo("org/old", before.revision)
    with pytest.raises(UnknownRepo, match="changed since"):
        hub.fetch(before, root)


@pytest.mark.parametrize(
    "name", ["org/none", "../hub/org/old", "org", "org/.hidden", "/etc/passwd"]
)
def test_what_is_not_there_is_unknown(hub, name):
    with pytest.raises(UnknownRepo, match="no repo"):
        hub.repo(name)


def test_hidden_things_and_links_out_of_the_root_do_not_exist(root, hub, tmp_path):
    outside = make(tmp_path, "secret/model")
    make(root, ".git/repo")
    (root / "org/linked").symlink_to(outside)
    (root / "out").symlink_to(outside.parent)
    before = hub.repo("org/old").revision
    (root / "org/old/stolen.txt").symlink_to(outside / "config.json")
    (root / "org/old/.cache").mkdir()
    (root / "org/old/.cache/x").write_text("x")
    assert hub.repo("org/old").revision == before
    assert [line.id for line in hub.descendants(BASE)] == ["org/old", "org/new"]
    (root / "org/silent/README.md").symlink_to(outside / "README.md")
    assert hub.repo("org/silent").card == {}


def test_a_link_inside_the_root_is_followed(root, hub):
    (root / "org/copy").mkdir()
    for path in (root / "org/old").iterdir():
        (root / "org/copy" / path.name).symlink_to(path)
    assert hub.repo("org/copy").revision == hub.repo("org/old").revision


def test_a_card_that_cannot_be_read_is_listed_and_refused_with_the_reason(root, hub):
    make(root, "org/broken", f"base_model: {BASE}\ntags: [unclosed")
    assert "org/broken" in [line.id for line in hub.descendants(BASE)]
    repo = hub.repo("org/broken")
    assert repo.card == {}
    assert "front matter cannot be read: not YAML" in refusal(repo, BASE, Rules()).reason


def test_a_file_that_cannot_be_read_is_that_repos_problem_alone(root):
    def sha256(path):
        if path.parent.name == "old":
            raise PermissionError(13, "Permission denied", str(path))
        return hash_file(path)

    hub = FolderHub(root, sha256=sha256)
    assert len(list(hub.descendants(BASE))) == 2
    assert "cannot be read: Permission denied" in refusal(hub.repo("org/old"), BASE, Rules()).reason
    assert hub.repo("org/new").problem is None


def test_a_name_that_is_no_text_is_not_there(root, hub):
    before = hub.repo("org/old")
    for name in (b"\xff.json", b"\xff/config.json"):
        place = root / "org/old" / os.fsdecode(name)
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"{}")
    assert hub.repo("org/old") == before
    assert len(list(hub.descendants(BASE))) == 2


def test_folders_deeper_than_any_repos_are_not_there(root, hub):
    before = hub.repo("org/old").revision
    deep = root / "org/old" / "/".join("d" * 1500)
    # Python's own ways to make and remove them are not as deep.
    subprocess.run(["mkdir", "-p", deep], check=True)
    (deep / "x").write_bytes(b"x")
    assert hub.repo("org/old").revision == before
    subprocess.run(["rm", "-r", root / "org/old/d"], check=True)


def test_a_file_of_terabytes_that_are_not_on_the_disk_is_not_read(root):
    hollow = root / "org/old/model.safetensors"
    os.truncate(hollow, 1 << 42)

    def sha256(path):
        assert path != hollow
        return hash_file(path)

    hub = FolderHub(root, sha256=sha256)
    assert len(list(hub.descendants(BASE))) == 2
    found = hub.repo("org/old")
    assert (
        "model.safetensors is not whole: most of it is holes"
        in refusal(found, BASE, Rules()).reason
    )


def test_a_large_file_with_some_holes_is_whole(root):
    weights = root / "org/old/model.safetensors"
    with weights.open("r+b") as file:
        file.seek(1_000_000)
        file.write(bytes([1]) * 3_000_000)
        file.truncate(5_000_000)
    assert FolderHub(root).repo("org/old").problem is None


def test_more_files_than_any_repo_has_are_not_read(root, monkeypatch):
    monkeypatch.setattr(folder_module, "_MOST_FILES", 4)
    (root / "org/old/more").write_bytes(b"")
    hub = FolderHub(root)
    assert (
        "it has 5 files; the most allowed is 4"
        in refusal(hub.repo("org/old"), BASE, Rules()).reason
    )
    assert hub.repo("org/new").problem is None


@pytest.mark.parametrize("moment", [-(1 << 40), 1 << 40])
def test_a_file_of_any_year_is_listed(root, hub, moment):
    os.utime(root / "org/old/config.json", (moment, moment))
    assert len(list(hub.descendants(BASE))) == 2


def test_a_repo_that_is_removed_while_it_is_read_is_unknown(root):
    def sha256(path):
        if path.parent.name == "old":
            shutil.rmtree(path.parent, ignore_errors=True)
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return hash_file(path)

    hub = FolderHub(root, sha256=sha256)
    with pytest.raises(UnknownRepo, match=r"org/old in .* was removed while it was looked at"):
        hub.repo("org/old")
    make(root, "org/old", age=500)
    assert [line.id for line in hub.descendants(BASE)] == ["org/new"]


def test_a_machine_without_descriptors_says_nothing_of_its_repos(root):
    def sha256(path):
        raise OSError(24, "Too many open files", str(path))

    hub = FolderHub(root, sha256=sha256)
    for look in (lambda: list(hub.descendants(BASE)), lambda: hub.repo("org/old")):
        with pytest.raises(Transient, match="cannot be read: Too many open files"):
            look()


def test_fetch_gives_the_folder_itself_and_copies_nothing(root, hub, tmp_path):
    told = []
    into = tmp_path / "cache"
    place = hub.fetch(hub.repo("org/old"), into, told.append)
    assert place.samefile(root / "org/old")
    assert not into.exists()
    assert sum(told) == sum(path.stat().st_size for path in place.iterdir())


@pytest.fixture
def merge(tmp_path):
    place = make(tmp_path, "staging/merge", "license: mit")
    (place / ".lock").write_text("")
    (place / "more").mkdir()
    (place / "more" / "notes.txt").write_text("n")
    return place


def test_publish_places_the_whole_repo_and_twice_changes_nothing(root, hub, merge):
    first = revision, url = hub.publish("kinship/merge", merge, "a merge", private=True)
    target = root / "kinship/merge"
    assert revision == hub.repo("kinship/merge").revision
    assert url == str(target)
    assert (target / "more/notes.txt").read_text() == "n"
    assert not (target / ".lock").exists()
    times = {path: path.stat().st_mtime_ns for path in [target, *target.rglob("*")]}
    assert hub.publish("kinship/merge", merge, "a merge", private=True) == first
    assert {path: path.stat().st_mtime_ns for path in [target, *target.rglob("*")]} == times


def test_publish_never_replaces_other_content(root, hub, merge):
    before = hub.repo("org/old").revision
    with pytest.raises(KinshipError, match=r"exists with other content.*publish\.name, or remove"):
        hub.publish("org/old", merge, "a merge", private=True)
    assert hub.repo("org/old").revision == before


def test_a_killed_publish_leaves_no_repo_and_the_next_one_cleans_up(root, hub, merge, monkeypatch):
    copied, copyfile = [], shutil.copyfile

    def killed(source, target):
        if copied:
            raise KeyboardInterrupt
        copied.append(copyfile(source, target))

    monkeypatch.setattr(folder_module.shutil, "copyfile", killed)
    with pytest.raises(KeyboardInterrupt):
        hub.publish("kinship/merge", merge, "a merge", private=True)
    monkeypatch.undo()
    assert not (root / "kinship/merge").exists()
    assert "kinship/merge" not in hub.about()
    leftover = list((root / "kinship").iterdir())
    (leftover[0] / "junk").write_text("half a file")

    revision, _ = hub.publish("kinship/merge", merge, "a merge", private=True)

    assert [path.name for path in (root / "kinship").iterdir()] == ["merge"]
    assert revision == FolderHub(root).repo("kinship/merge").revision
    assert not (root / "kinship/merge/junk").exists()


@pytest.mark.parametrize("name", ["../merge", "merge", "a/b/c", "org/.x"])
def test_publish_stays_inside_the_root(root, hub, merge, name):
    with pytest.raises(UsageError, match="is not a repo id"):
        hub.publish(name, merge, "a merge", private=True)


def test_a_folder_opens_as_a_hub_and_what_is_missing_says_so(root, tmp_path):
    assert open_hub(str(root)).about() == f"folder {root} (repos: 5)"
    with pytest.raises(UsageError, match="expected a URL such as"):
        open_hub(str(tmp_path / "nowhere"))


def test_a_repo_that_is_moved_in_is_seen_however_old_its_files_are(root, hub, tmp_path):
    before = datetime.now(UTC) - timedelta(minutes=1)
    new = tmp_path / "elsewhere"
    shutil.copytree(next(path for path in sorted(root.glob("*/*")) if path.is_dir()), new)
    (new / "README.md").write_text(f"---\nbase_model: {BASE}\n---\n")
    for path in (*new.iterdir(), new):
        os.utime(path, (0, 0))
    new.rename(root / "org" / "moved-in")
    assert "org/moved-in" in {line.id for line in hub.descendants(BASE, before)}


def test_nested_files_are_published_and_read_back(hub, root, tmp_path):
    folder = tmp_path / "stage"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    hub.publish("us/x", folder, "a merge", private=True)
    assert {file.path for file in hub.repo("us/x").files} == {
        "config.json",
        "additional_chat_templates/tool.jinja",
    }


def test_a_repo_that_is_no_descendant_is_named_with_what_it_declares(root, hub):
    make(root, "org/url", f"base_model: https://huggingface.co/{BASE}")
    make(root, "org/broken", "base_model: [")
    make(root, "org/long", f"base_model: '{'x' * 9000}\\e[2J'")
    make(root, "org/mangled", f"base_model: [{BASE}")
    told = dict(hub.passed_over(BASE, ["org/mangled"]))
    assert told["org/url"] == (f"its README.md declares base_model 'https://huggingface.co/{BASE}'")
    assert told["org/stranger"] == "its README.md declares base_model 'org/another'"
    assert told["org/silent"] == "it declares no base_model"
    assert "cannot be read" in told["org/broken"]
    assert len(told["org/long"]) < 300
    # A card that names the base and cannot be read is a candidate, and refused as one.
    assert told.keys() == {"org/url", "org/stranger", "org/silent", "org/broken", "org/long"}


def test_control_characters_of_a_card_are_shown_escaped(root, hub):
    make(root, "org/odd", 'base_model: "a\\e[2J\\nb"')
    assert dict(hub.passed_over(BASE, ()))["org/odd"].endswith(r"base_model 'a\x1b[2J\nb'")


def test_hard_links_are_files_like_others(root, hub, tmp_path):
    weights, other = (root / "org" / name / "model.safetensors" for name in ("old", "new"))
    other.unlink()
    other.hardlink_to(weights)
    before = hub.repo("org/new")
    assert before.files[-1].sha256 == hub.repo("org/old").files[-1].sha256
    hub.publish("us/copy", root / "org" / "new", "a copy", private=False)
    with weights.open("ab") as file:
        file.write(b"more")
    # What is written to one is written to the other, and seen in both; a copy is our own.
    assert hub.repo("org/new").revision != before.revision
    with pytest.raises(UnknownRepo, match="changed since it was looked at"):
        hub.fetch(before, tmp_path)
    assert hub.repo("us/copy").revision == before.revision


def test_a_card_that_the_machine_cannot_read_says_nothing_of_its_repo(root, hub, monkeypatch):
    def scarce(*_arguments):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "open", scarce)
    for look in (
        lambda: list(hub.descendants(BASE)),
        lambda: list(hub.passed_over(BASE, ())),
        lambda: hub.repo("org/old"),
    ):
        with pytest.raises(Transient, match="cannot be read: Too many open files"):
            look()


def test_a_quiet_look_hashes_nothing_and_reads_no_card(root, monkeypatch):
    hashed = []
    hub = FolderHub(root, sha256=lambda path: hashed.append(path) or hash_file(path))
    since = datetime.now(UTC) + timedelta(hours=1)
    for path in root.rglob("*"):
        os.utime(path, (1_000_000_000,) * 2)
    monkeypatch.setattr(folder_module, "front_matter", None)
    assert list(hub.descendants(BASE, since)) == []
    assert hashed == []
