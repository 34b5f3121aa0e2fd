"""A node's leaves: whole or not there, held or able to go, and what is said where they lack."""

import os
import re
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

from hub_server.server import HubServer
from kinship_daemon.durable import hash_file
from kinship_daemon.errors import Transient
from kinship_daemon.execute import leaf_sources
from kinship_daemon.execute.leaf_sources import from_hub, from_shared_folder, share
from kinship_daemon.execute.node_cache import Leaf, NodeCache, machine
from kinship_daemon.model_files import is_sidecar
from kinship_storage.records import File

SIZE = 1000


def leaf(folder, name, size=SIZE, machine="another"):
    """A leaf of random bytes; on another machine, unless it is said to be on this one."""
    place = folder / "daemon" / name
    place.mkdir(parents=True)
    weights = place / "model.safetensors"
    weights.write_bytes(os.urandom(size))
    files = (File(weights.name, size, hash_file(weights)),)
    return Leaf(name, files, place, machine)


@pytest.fixture
def shared(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def cache(root, shared, disk_bytes=1e9):
    return NodeCache(root, disk_bytes=disk_bytes, sources=[from_shared_folder(shared)])


def content(held, leaf):
    return (held[leaf.key] / "model.safetensors").read_bytes()


def test_a_leaf_is_brought_once_and_is_whole(tmp_path, shared):
    a = leaf(tmp_path, "a")
    share(a, shared)
    node = cache(tmp_path / "node", shared)
    assert not node.has(a)
    with node.holding([a, a]) as held:
        assert content(held, a) == (a.folder / "model.safetensors").read_bytes()
    (shared / a.key / "model.safetensors").unlink()
    with cache(tmp_path / "node", shared).holding([a]) as held:
        assert held == {a.key: tmp_path / "node" / a.key}


def test_a_damaged_file_is_brought_again(tmp_path, shared):
    a = leaf(tmp_path, "a")
    share(a, shared)
    with cache(tmp_path / "node", shared).holding([a]) as held:
        (held[a.key] / "model.safetensors").write_bytes(bytes(SIZE))
    with cache(tmp_path / "node", shared).holding([a]) as held:
        assert content(held, a) == (a.folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_does_not_belong_to_a_damaged_leaf_goes(tmp_path, shared, make):
    a = leaf(tmp_path, "a")
    share(a, shared)
    with cache(tmp_path / "node", shared).holding([a]) as held:
        (held[a.key] / "model.safetensors").write_bytes(bytes(SIZE))
        make(held[a.key] / "stray")
    with cache(tmp_path / "node", shared).holding([a]) as held:
        assert [file.name for file in held[a.key].iterdir()] == ["model.safetensors"]


def test_other_content_than_was_admitted_is_never_given(tmp_path, shared):
    a = leaf(tmp_path, "a")
    share(a, shared)
    (shared / a.key / "model.safetensors").write_bytes(bytes(SIZE))
    with (
        pytest.raises(Transient, match=r"cannot have a: model\.safetensors arrives with other"),
        cache(tmp_path / "node", shared).holding([a]),
    ):
        pass
    assert not (tmp_path / "node" / a.key).exists()


def test_a_folder_that_the_node_does_not_see_is_named(tmp_path):
    a = leaf(tmp_path, "a")
    with (
        pytest.raises(Transient, match=r"shared_folder .*nowhere is not seen there"),
        cache(tmp_path / "node", tmp_path / "nowhere").holding([a]),
    ):
        pass


def test_who_was_not_used_for_longest_makes_room_and_who_is_held_never(tmp_path, shared):
    a, b, c = (leaf(tmp_path, name) for name in "abc")
    for each in (a, b, c):
        share(each, shared)
    node = cache(tmp_path / "node", shared, disk_bytes=2 * SIZE)
    for each in (a, b, a):
        with node.holding([each]):
            pass
    with node.holding([c]):
        assert [node.has(each) for each in (a, b, c)] == [True, False, True]
        with node.holding([a]), pytest.raises(Transient, match="no room for b"), node.holding([b]):
            pass
        assert node.has(a)


def test_two_that_arrive_at_once_do_not_take_the_same_room(tmp_path, shared, monkeypatch):
    a, b = (leaf(tmp_path, name) for name in "ab")
    for each in (a, b):
        share(each, shared)
    mkdir, others, told = Path.mkdir, [], []

    def bring_b():
        try:
            with cache(tmp_path / "node", shared, disk_bytes=SIZE).holding([b]):
                told.append("b fits beside a")
        except Transient as error:
            told.append(str(error))

    def slow(path, *args, **options):
        if path == tmp_path / "node" / f".{a.key}.partial" and not others:
            others.append(threading.Thread(target=bring_b))
            others[0].start()
            others[0].join(1)  # it may have to wait for us
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", slow)
    with cache(tmp_path / "node", shared, disk_bytes=SIZE).holding([a]):
        others[0].join()
    assert "no room for b" in told[0]


def test_what_does_not_fit_at_once_is_said_before_any_of_it_is_brought(tmp_path, shared):
    two = [leaf(tmp_path, name) for name in "ab"]
    here = leaf(tmp_path, "here", machine=machine())  # takes no room
    for each in two:
        share(each, shared)
    node = cache(tmp_path / "node", shared, disk_bytes=1.5 * SIZE)
    with node.holding([two[0], here, two[0]]):
        pass
    shutil.rmtree(tmp_path / "node")
    with pytest.raises(Transient, match="no room for 2 models at once"), node.holding([*two, here]):
        pass
    assert not (tmp_path / "node").exists()


def test_a_full_disk_is_one_line_and_no_half_leaf(tmp_path, shared):
    a = leaf(tmp_path, "a", size=3_000_000)
    share(a, shared)
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(Transient, match="no room for a"), cache(disk, shared).holding([a]):
            pass
        assert not (disk / a.key).exists()


@contextmanager
def small_disk(disk):
    """Of 2 MB."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_threads_of_a_daemon_share_the_same_leaf_once(tmp_path, shared, monkeypatch):
    """Workers begin together, and the first of what they read is the base."""
    a, copied, both = leaf(tmp_path, "a"), [], threading.Barrier(2)
    copy = leaf_sources._copy

    def slowly(source, target):
        copied.append(source)
        time.sleep(0.2)
        copy(source, target)

    def together(leaf):
        both.wait(60)
        share(leaf, shared)

    monkeypatch.setattr(leaf_sources, "_copy", slowly)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(together, [a, a]))
    assert len(copied) == 1
    assert [path.name for path in shared.iterdir()] == [a.key]


def test_two_daemons_that_share_a_leaf_at_once_do_not_disturb_each_other(
    tmp_path, shared, monkeypatch
):
    a, said = leaf(tmp_path, "a"), []
    copy = leaf_sources._copy

    def also_elsewhere(source, target):
        """While the first copies, a second comes, which has no lock of ours."""
        copy(source, target)
        if not said:
            said.append("once")
            monkeypatch.setattr(leaf_sources, "_SHARING", threading.Lock())
            share(a, shared)

    monkeypatch.setattr(leaf_sources, "_copy", also_elsewhere)
    share(a, shared)
    assert [path.name for path in shared.iterdir()] == [a.key]
    assert (shared / a.key / "model.safetensors").stat().st_size == SIZE


def test_a_shared_folder_whose_disk_is_full_is_waited_for(tmp_path):
    a = leaf(tmp_path, "a", size=3_000_000)
    with small_disk(tmp_path / "disk") as disk:
        words = f"executor.shared_folder {disk}: No space left on device; free some space there"
        with pytest.raises(Transient, match=re.escape(words)):
            share(a, disk)
        assert list(disk.iterdir()) == []


def test_two_who_want_the_same_leaf_bring_it_once(tmp_path, shared):
    a = leaf(tmp_path, "a")
    share(a, shared)
    brought, missed, inside = [], threading.Barrier(2), threading.Barrier(2)

    class Racing(NodeCache):
        """Both see that it is not there before either may bring it."""

        has_looked = False

        def _wrong(self, leaf, folder):
            found = super()._wrong(leaf, folder)
            if not self.has_looked:
                self.has_looked = True
                missed.wait(60)
            return found

    def source(leaf: Leaf, files, into: Path) -> None:
        brought.append(leaf.name)
        from_shared_folder(shared)(leaf, files, into)

    def use() -> None:
        node = Racing(tmp_path / "node", disk_bytes=1e9, sources=[source])
        with node.holding([a]):  # as readers, at the same time
            inside.wait(60)

    users = [threading.Thread(target=use) for _ in range(2)]
    for user in users:
        user.start()
    for user in users:
        user.join(60)
    assert brought == ["a"]
    assert not inside.broken


@pytest.fixture
def hub_leaf(tmp_path, tiny_finetunes, monkeypatch):
    """A fine-tune on a hub over loopback, as the daemon would name it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubServer() as server:
        repo = server.add("org/a", tiny_finetunes[0])
        files = (p for p in sorted(tiny_finetunes[0].iterdir()) if is_sidecar(p.name))
        weights = tiny_finetunes[0] / "model.safetensors"
        listed = tuple(File(p.name, p.stat().st_size, hash_file(p)) for p in [*files, weights])
        yield server, Leaf("org/a", listed, tmp_path / "gone", "another", "org/a", repo)


def test_a_leaf_comes_from_the_hub_at_its_revision(tmp_path, hub_leaf):
    server, a = hub_leaf
    node = NodeCache(
        tmp_path / "node", disk_bytes=1e9, sources=[from_hub(server.url, tmp_path / "arriving")]
    )
    with node.holding([a]) as held:
        assert sorted(p.name for p in held[a.key].iterdir()) == sorted(f.path for f in a.files)
    assert node.keys() == [a.key]
    assert not list((tmp_path / "arriving").rglob("*.*")), "nothing is kept twice"


def test_what_no_hub_has_takes_the_shared_folder(tmp_path):
    a = leaf(tmp_path, "a")
    source = from_hub("https://huggingface.co", tmp_path / "arriving")
    node = NodeCache(tmp_path / "node", disk_bytes=1e9, sources=[source])
    with pytest.raises(Transient, match=r"set executor\.shared_folder"), node.holding([a]):
        pass
