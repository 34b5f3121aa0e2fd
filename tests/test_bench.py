"""The benchmark runs on tiny models, measures what it says, and tells a missed bar by its exit."""

import json
import runpy
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tiny
import warm_workers

ROOT = Path(__file__).parents[1]
ROWS = [
    "kinship of one pair",
    "all pairs of 3 models",
    *(f"Gram kernel alone, n={count}" for count in (2, 4, 8, 16)),
    "linear merge of 2",
    "linear: outputs beside mergekit's",
    "exactness of pcc and cosine",
    "growth from a quarter to the whole size",
]


@pytest.fixture
def part(monkeypatch):
    """A module of the benchmark; `tests` is found from the repository's root alone."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: import_module(f"tests.bench.{name}")


@pytest.fixture
def inside(part, monkeypatch, capsys):
    """The benchmark in this process: its status, and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        return part("__main__").main(), capsys.readouterr().out

    return run


@pytest.fixture
def quick_commands(part, monkeypatch, tmp_path):
    """Commands that are measured run in processes which have done their imports."""
    processes = part("processes")

    def timed(command):
        start = time.perf_counter()
        done = warm_workers.run(command[1:], tmp_path, work=python)
        if done.code != 0:
            raise processes.CommandFailed(done.err)
        return processes.Run(time.perf_counter() - start, 1, done.out)

    monkeypatch.setattr(processes, "timed", timed)
    monkeypatch.setattr(part("kinships"), "timed", timed)


def python():
    """What the interpreter does with its arguments."""
    first, *rest = sys.argv[1:]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


def bench(*arguments):
    """The benchmark as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "tests.bench", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.slow
def test_every_measurement_has_its_rows(inside, quick_commands, tmp_path):
    found = tmp_path / "found.json"
    names = ("pair", "all-pairs", "kernel", "linear", "exactness", "growth")
    size = ("--parameters", "1e6", "--repeat", "1", "--models", "3")
    kept, out = tmp_path / "kept", tmp_path / "out"
    out.mkdir()
    places = ("--json", found, "--folder", kept, "--out", out)
    status, printed = inside(*size, "--only", ",".join(names), *places)
    result = json.loads(found.read_text(encoding="utf-8"))
    rows = {row["work"]: row for row in result["rows"]}
    assert list(rows) == ROWS
    table = [line for line in printed.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0][2:] for line in table] == ["work", *ROWS]
    # On models this small start-up is all there is and bars of speed are missed: status 1.
    verdicts = {row["verdict"] for row in rows.values()}
    assert "failed" not in verdicts, printed
    assert status == int("missed" in verdicts)
    assert rows["exactness of pcc and cosine"]["verdict"] == "met"
    assert rows["linear: outputs beside mergekit's"]["verdict"] == "met"
    ours, _, truth = rows["kinship of one pair"]["facts"]["values"]
    assert ours == pytest.approx(truth, abs=1e-6)
    assert {"processor", "cores", "memory", "torch", "mergekit", "date"} <= set(result["machine"])
    # Models are kept, outputs are not.
    assert not list(kept.glob("tmp*"))
    assert not list(out.iterdir())


def test_a_first_look_is_timed_with_one_connection_and_several(inside, tmp_path):
    found = tmp_path / "found.json"
    inside("--only", "look", "--candidates", 30, "--json", found)
    http, folder = json.loads(found.read_text(encoding="utf-8"))["rows"]
    one, several = http["facts"]["one"], http["facts"]["several"]
    assert [each["all"] for each in (one, several, folder["facts"])] == [30, 30, 30]
    assert [each["looked"] for each in (one, several, folder["facts"])] == [10, 10, 10]
    assert one["digest"] == several["digest"]
    # Each answer comes 20 ms late, and a look needs several: one after another that adds up.
    assert several["first"] < one["first"]
    assert [one["requests"], several["requests"]] == [1, 1]


def test_an_unknown_measurement_is_refused_with_the_known_ones():
    done = bench("--only", "kernels")
    assert done.returncode == 2
    assert "no measurement 'kernels'; there are pair, all-pairs, kernel" in done.stderr


def test_outputs_go_where_they_are_asked_to_and_the_table_knows_what_that_is(
    part, inside, capsys, tmp_path
):
    with pytest.raises(SystemExit) as ended:
        inside("--only", "linear", "--out", tmp_path / "none")
    assert ended.value.code == 2
    assert f"no folder {tmp_path / 'none'}" in capsys.readouterr().err
    filesystem = part("table").filesystem
    mounts = Path("/proc/mounts")
    if mounts.exists():
        assert filesystem(Path("/proc/self")) == filesystem(Path("/proc")) == "proc"
        kinds = {line.split()[2] for line in mounts.read_text().splitlines()}
        assert filesystem(tmp_path) in kinds


def test_models_are_the_same_every_time_and_kin(part, tmp_path):
    models, kinships = part("models"), part("kinships")
    one, two = (models.Family(tmp_path / name, 1e5) for name in ("one", "two"))
    for first, second in ((one.base, two.base), (one.leaf(1), two.leaf(1))):
        assert len(list(first.glob("*.safetensors"))) == 2
        for path in first.iterdir():
            assert path.read_bytes() == (second / path.name).read_bytes()
    assert kinships.truths(one.base, one.leaf(0), one.leaf(1))["pcc"] == pytest.approx(0.6, abs=0.1)


def test_sizes_follow_what_was_asked_for(part):
    models = part("models")
    for asked in (3e7, 0.85e9, 7.24e9):
        assert models.nbytes(asked) / 2 == pytest.approx(asked, rel=0.15)


def test_the_gates_simulation_tells_luck_power_looks_and_the_race(part):
    """Three homes of each kind; the figures are those of a thousand, in docs/benchmarks.md."""
    given = SimpleNamespace(evolutions=3, progress=SimpleNamespace(runs=lambda _what: None))
    rows = {row.work: row for row in part("gate").gate(given)}
    kinds = ("equal newcomers", "all equal", "smooth", "rugged", "ten in a row")
    assert list(rows) == [
        *(f"gate: {kind}" for kind in kinds),
        "gate: one incumbent, the hardest case",
        *(f"{what}: {kind}" for kind in ("smooth", "rugged") for what in ("looks", "race")),
    ]
    for kind in ("smooth", "rugged"):
        found = rows[f"gate: {kind}"].facts
        assert found["parents"]["published"] >= found["best"]["published"] > 0
        assert 0.1 < rows[f"race: {kind}"].facts["default"]["losers"] < 0.9
        asked = rows[f"looks: {kind}"].facts
        assert asked["futility"]["asked"] < asked["early"]["asked"] < 1 == asked["fixed"]["asked"]


# A child that holds 300 MB for half a second, of its own or as a mapped file.
OWN = "import time; held = b'x' * 300_000_000; time.sleep(0.5)"
MAPPED = (
    "import mmap, sys, time; file = open(sys.argv[1], 'rb'); "
    "held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); sum(held[::4096]); time.sleep(0.5)"
)
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]], check=True)"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_private_memory_is_that_of_the_whole_process_tree_but_not_of_mapped_files(part, tmp_path):
    timed = part("processes").timed
    file = tmp_path / "file"
    file.write_bytes(bytes(300_000_000))
    own = timed([sys.executable, "-c", PARENT, OWN])
    mapped = timed([sys.executable, "-c", PARENT, MAPPED, str(file)])
    assert 300e6 < own.private < 400e6
    assert 1e6 < mapped.private < 100e6
    assert own.seconds > 0.5


def test_a_command_that_fails_is_told_by_its_last_line(part):
    processes = part("processes")
    with pytest.raises(processes.CommandFailed, match=r"^ValueError: no such weight$"):
        processes.timed([sys.executable, "-c", "raise ValueError('no such weight')"])


def test_outputs_are_compared_in_bf16_steps(part, tmp_path):
    def folder(name, *values):
        tensor = torch.tensor(values, dtype=torch.bfloat16)
        return tiny.bare(tmp_path / name, {"w": tensor})

    # 1 and its neighbour, both signs of 0, three steps found, and a cancelled sum.
    ours = folder("ours", 1.0, 0.0, -1.0, 2e-9)
    theirs = folder("theirs", 1.0078125, -0.0, -1.0234375, 1e-9)
    inputs = [folder("a", 1.0, 0.0, 1.0, 0.02), folder("b", 1.0, 0.0, 1.0, -0.02)]
    found = part("merges").compare(ours, theirs, inputs)
    assert (found.elements, found.near, found.largest, found.cancelled) == (4, 2, 3, 1)
    assert found.widest == pytest.approx(1e-9, rel=0.01)
