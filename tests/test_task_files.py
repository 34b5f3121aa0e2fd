"""Task files are programs: only those run whose folders the user named, and all are bounded."""

import threading
import time
from pathlib import Path

import pytest

import lmtasks
import warm_workers
from kinship_daemon.errors import UsageError
from kinship_daemon.evaluate.settings import Settings, Task
from kinship_daemon.evaluate.task_files import TaskFiles
from kinship_daemon.evaluate.tasks import load_tasks

DOCUMENTS = [{"prompt": f"{n}=", "answer": "a"} for n in range(3)]
ELSEWHERE = "import pathlib\npathlib.Path({mark!r}).write_text('ran')\ndef load(**_): ...\n"


@pytest.fixture
def folder(tmp_path):
    return lmtasks.task(tmp_path / "tasks", "own", DOCUMENTS)


@pytest.fixture
def outside(tmp_path):
    """A folder that nobody named, whose code leaves a mark when it is run."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "evil.py").write_text(ELSEWHERE.format(mark=str(tmp_path / "mark")))
    (place / "evil.yaml").write_text("custom_dataset: !function evil.load\n")
    return place


def load(folder: Path, name="own"):
    specs = (Task(task=name),)
    return load_tasks(
        Settings(selection=specs, validation=specs, seed=0, include_path=(folder,), device="cpu")
    )


def test_a_task_of_a_named_folder_runs_its_own_code(folder):
    (loaded,) = load(folder).values()
    assert loaded.documents == 3


REACHING = {
    "an include of another folder": "include: ../elsewhere/evil.yaml",
    "an include by its full name": "include: {outside}/evil.yaml",
    "one of several includes": "include: [own.yaml, ../elsewhere/evil.yaml]",
    "an include of an include": "include: between.yaml",
    "code by its full name": "custom_dataset: !function {dotted}.evil.load",
    "code that is linked to": "custom_dataset: !function linked.load",
    "code of a folder that is linked to": "custom_dataset: !function far.evil.load",
    "code of whatever is installed": "custom_dataset: !function os.system",
    "code that scores": "metric_list: [{{metric: acc, aggregation: !function os.system}}]",
}


@pytest.mark.parametrize("text", REACHING.values(), ids=REACHING.keys())
def test_what_is_in_no_named_folder_is_neither_read_nor_run(folder, outside, tmp_path, text):
    (folder / "linked.py").symlink_to(outside / "evil.py")
    (folder / "far").symlink_to(outside)
    (folder / "between.yaml").write_text("include: ../elsewhere/evil.yaml\n")
    dotted = str(outside).replace("/", ".")
    task = text.format(outside=outside, dotted=dotted)
    (folder / "reaching.yaml").write_text(f"task: reaching\n{task}\ntest_split: test\n")
    with pytest.raises(UsageError, match=r"reaching\.yaml: .*evaluate\.include_path") as refused:
        load(folder, "reaching")
    assert str(refused.value).isprintable()
    assert not (tmp_path / "mark").exists()


def test_a_folder_that_is_named_too_may_be_used(folder, outside):
    (folder / "reaching.yaml").write_text("task: reaching\ninclude: ../elsewhere/evil.yaml\n")
    TaskFiles([folder, outside]).check_task(folder / "reaching.yaml")


def test_a_task_file_that_is_a_link_out_of_the_folder_is_refused(folder, outside):
    (folder / "linked.yaml").symlink_to(outside / "evil.yaml")
    with pytest.raises(UsageError, match=r"linked\.yaml: leads to"):
        load(folder)


def checked(folder: Path) -> None:
    files = TaskFiles([folder])
    files.check()
    files.check_task(folder / "own.yaml")


BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}], y{i}: 1}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "items"),
        ("x: " + "[" * 900, "deep"),
        ("x: " + "y" * 1_000_001, "over 1000000 bytes"),
        ("x: !!python/object/apply:os.system [id]", "not YAML"),
        ("task: own\ninclude: 7\n", "no file"),
        ("task: own\ninclude: nowhere.yaml\n", "nowhere.yaml: cannot be read"),
        ("task: own\ninclude: 'a\\0b'\n", "cannot be"),
        ("task: own\nx: !function " + "9" * 300 + ".load\n", "is code outside"),
        ("task: own\ninclude: " + "z" * 300 + "\n", "cannot be read: File name too long"),
    ],
)
def test_a_hostile_task_file_is_refused_at_once_by_name(folder, text, said):
    (folder / "own.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(UsageError, match=said) as refused:
        checked(folder)
    assert time.process_time() - start < 1
    assert "task file" in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_includes_that_go_round_in_a_circle_end(folder):
    (folder / "own.yaml").write_text("task: own\ninclude: other.yaml\n")
    (folder / "other.yaml").write_text("include: own.yaml\n")
    checked = threading.Thread(
        target=TaskFiles([folder]).check_task, args=(folder / "own.yaml",), daemon=True
    )
    checked.start()
    checked.join(10)
    assert not checked.is_alive()


def test_doctor_says_whose_code_an_evaluation_runs(folder, tmp_path):
    asked = ["doctor", "--base", "demo", "--home", tmp_path / "home", "--set"]
    told = warm_workers.run([*asked, f"evaluate.include_path=[{folder}]"], tmp_path)
    assert f"ok  tasks     {folder}: 1 task file, 1 name code to run (!function)" in told.out
    (folder / "bomb.yaml").write_text(BOMB)
    told = warm_workers.run([*asked, f"evaluate.include_path=[{folder}]"], tmp_path)
    assert f"BAD tasks     task file {folder / 'bomb.yaml'}" in told.out
    assert told.code == 3
