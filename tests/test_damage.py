"""A lineage that is damaged, deleted or replaced: told by row, and never written over."""

import random
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import pytest

from command import run
from kinship_storage.cells import moment
from kinship_storage.errors import DamagedLineage, KinshipError
from kinship_storage.lineage import Lineage
from small_candidates import waiting
from small_lineage import fill, finetune, open_lineage

COMMANDS = (
    ("status",),
    ("lineage",),
    ("lineage", "--format", "json"),
    ("explain", "m1"),
    ("candidates",),
    ("analyze",),
    ("verify",),
)


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "lineage.db"
    with open_lineage(found) as lineage:
        fill(lineage)
        lineage.add_candidate(waiting("add"))
        sums = {"a.safetensors": "c" * 64}
        lineage.put("hub", str(tmp_path / "hub"))
        lineage.submit("publish", {"model": "m1", "files": sums}, "m1")
    return found


def change(path, *statements):
    """As a stranger would, who keeps no rule of the file."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            db.execute(statement)
        db.commit()


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE models SET recipe = '{' WHERE id = 'm1'", "models, row 'm1', column recipe"),
        ("UPDATE models SET recipe = '[]' WHERE id = 'm1'", "models, row 'm1', column recipe"),
        ("UPDATE models SET status = 'x' WHERE id = 'm1'", "models, row 'm1', column status"),
        ("UPDATE models SET gated = 7 WHERE id = 'm1'", "models, row 'm1', column gated"),
        ("UPDATE models SET created = 'x' WHERE id = 'm1'", "models, row 'm1', column created"),
        (
            "UPDATE models SET reason = CAST(x'ff' AS TEXT) WHERE id = 'demo/bad'",
            "models, row 'demo/bad', column reason",
        ),
        ("UPDATE candidates SET ancestry = '{}'", "candidates, row 'demo/add', column ancestry"),
        ("UPDATE generations SET settings = 'x'", "generations, row 1, column settings"),
        ("UPDATE generations SET decision = '{\"merges\": [1]}'", "generations, row 1, column dec"),
        ("UPDATE generations SET decision = '{\"top\": 1}'", "generations, row 1, column decision"),
        ("UPDATE facts SET value = x'00'", "facts, row 1, column value"),
        ("UPDATE gates SET settings = 'x'", "gates, row 1, column settings"),
        ("UPDATE publications SET files = '{\"a\": 1}'", "publications, row 'm1', column files"),
        ("UPDATE jobs SET inputs = '3'", "column inputs"),
        ("UPDATE home SET value = '{' WHERE key = 'hub'", "home, row 'hub', column value"),
        ("UPDATE parents SET parent = model", "its parent 'm1' is not from an earlier generation"),
        ("DELETE FROM models WHERE id = 'demo/add'", "refers to a row of models that is gone"),
        ("DROP INDEX jobs_by_kind", "index jobs_by_kind is gone"),
        (
            "UPDATE sqlite_schema SET sql = replace(sql, 'reason', 'rdason') WHERE name = 'models'",
            "table models is not as it was made",
        ),
    ],
)
def test_verify_names_what_is_damaged_and_who_would_write_is_refused(path, statement, row):
    change(path, statement)
    before = path.read_bytes()
    with open_lineage(path, readonly=True) as reader:
        assert any(row in line for line in reader.damage()), reader.damage()
        assert any(row in line for line in reader.verify())
    with pytest.raises(DamagedLineage, match="is damaged"):
        open_lineage(path)
    assert path.read_bytes() == before


def test_a_command_that_meets_a_damaged_row_names_it_in_one_line(path, tmp_path):
    change(path, "UPDATE models SET recipe = '{' WHERE id = 'm1'")
    for command in COMMANDS[:5]:
        told = run([*command, "--home", tmp_path], tmp_path)
        if command[0] in {"lineage", "explain", "status"}:
            assert told.code == 4
            assert "models, row 'm1', column recipe" in told.err
        assert len(told.err.splitlines()) <= 1
    told = run(["verify", "--home", tmp_path], tmp_path)
    assert told.code == 4
    assert "models, row 'm1', column recipe" in told.err


def told(path, read):
    """What a reader is told of the damage; None if it finds what it wants."""
    try:
        with open_lineage(path, readonly=True) as lineage:
            read(lineage)
    except KinshipError as error:
        return str(error)
    return None


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes_end_in_one_line_and_are_not_written_over(path, seed):
    draw = random.Random(seed)
    whole = path.read_bytes()
    for _ in range(15):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 1, 8])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        for file in path.parent.glob("lineage.db*"):
            file.unlink()
        path.write_bytes(data)
        lines = [told(path, Lineage.export), told(path, Lineage.verify)]
        lines.append(told(path, Lineage.count_jobs))
        assert not any("\n" in line for line in lines if line is not None)
        assert path.read_bytes() == data


def test_a_damaged_index_is_found(path):
    """Commands read indexes alone where these hold all that they ask for."""
    whole = path.read_bytes()
    places = [place.start() for place in re.finditer(b"done(?!')", whole)]
    assert len(places) > 2  # in the table and in its indexes; the schema has it in quotes
    for i in places:
        path.write_bytes(whole[: i + 3] + b"\xff" + whole[i + 4 :])
        line = told(path, Lineage.count_jobs)
        assert line is None or "is damaged" in line
        with open_lineage(path, readonly=True) as reader:
            assert reader.damage()


def test_what_a_damaged_file_makes_of_a_reader_is_told_as_damage(path):
    change(path, "UPDATE jobs SET inputs = '3'")
    with (
        pytest.raises(DamagedLineage, match=r"jobs, row .* column inputs"),
        open_lineage(path, readonly=True),
    ):
        raise TypeError("'int' object is not subscriptable")


def test_a_bug_beside_a_whole_lineage_stays_a_bug(path):
    with pytest.raises(TypeError), open_lineage(path, readonly=True):
        raise TypeError


def test_a_deleted_lineage_is_not_made_again(path):
    lineage = open_lineage(path)
    for file in path.parent.glob("lineage.db*"):
        file.unlink()
    with pytest.raises(DamagedLineage, match="was deleted while it was open"):
        lineage.put("base", "other")
    lineage.close()
    assert list(path.parent.glob("lineage.db*")) == []


def test_a_lineage_that_was_renamed_over_is_left_alone(path, tmp_path):
    lineage = open_lineage(path)
    lineage.put("base", "ours")
    with open_lineage(tmp_path / "other.db") as other:
        other.add_model(finetune("other"))
    (tmp_path / "other.db").replace(path)
    theirs = path.read_bytes()
    with pytest.raises(DamagedLineage, match="was replaced or changed by another program"):
        lineage.add_model(finetune("more"))
    with pytest.raises(DamagedLineage, match="was replaced"):
        lineage.models()
    lineage.close()
    assert path.read_bytes() == theirs
    with open_lineage(path) as replaced:  # nothing of ours is in it, from no log either
        assert [model.id for model in replaced.models()] == ["demo/other"]
        assert replaced.get("base") is None


def test_a_lineage_that_was_copied_over_is_left_alone(path, tmp_path):
    lineage = open_lineage(path)
    lineage.put("base", "ours")
    with open_lineage(tmp_path / "other.db") as other:
        other.add_model(finetune("other"))
    theirs = (tmp_path / "other.db").read_bytes()
    path.write_bytes(theirs)
    with pytest.raises(DamagedLineage, match="was replaced or changed by another program"):
        lineage.check_in_place()
    lineage.close()
    assert path.read_bytes() == theirs


def test_a_transaction_under_which_the_file_goes_is_not_committed(path):
    lineage = open_lineage(path)

    def deleted_meanwhile():
        with lineage.transaction():
            path.unlink()

    with pytest.raises(DamagedLineage, match="was deleted"):
        deleted_meanwhile()
    lineage.close()


def test_checkpoints_and_writers_beside_are_no_strangers(path):
    with open_lineage(path) as lineage:
        for number in range(30):
            lineage.put("big", "x" * 400_000 + str(number))  # past a checkpoint, more than once
            with type(lineage).open(path, now=lineage._now, beside=True) as other:
                other.put("small", number)
        assert lineage.get("small") == 29


@pytest.mark.parametrize(
    "text",
    ["2026-W05-6T08:15:00Z", "2026-01-31T24:00:00Z", "2026-02-30T00:00:00Z", "2026-1-3T8:5:0Z", ""],
)
def test_only_a_time_as_we_write_it_is_a_time(text):
    assert moment("2026-01-31T08:15:00Z") == datetime(2026, 1, 31, 8, 15, tzinfo=UTC)
    with pytest.raises(ValueError, match="not a time"):
        moment(text)
