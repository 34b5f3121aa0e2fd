"""Who waits, who was refused, what was spent: `candidates` and `status` on a home of thousands."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

import command
from kinship_daemon.home import Home
from kinship_daemon.reasons import by_reason, lines
from kinship_storage.records import Model
from small_candidates import MERGED, STRANGER, waiting
from small_lineage import fill, finetune, open_lineage

THOUSANDS = 10_000


@pytest.fixture
def home(tmp_path):
    return filled(tmp_path / "home")


def filled(path):
    """Two triaged and one seen who wait, three refused, one admitted and gone since."""
    path.mkdir()
    with open_lineage(path / "lineage.db") as lineage:
        fill(lineage)
        near = waiting("near", triaged=True, novelty=0.1, novelty_error=0.02, downloads=900)
        far = waiting("far", triaged=True, novelty=0.9, novelty_error=0.01, bytes=14_500_000_000)
        for candidate in (near, far, waiting("new", downloads=9, likes=1)):
            add(lineage, candidate, "seen")
        add(lineage, waiting("gguf", triaged=True), "refused", "a quantised copy")
        add(lineage, waiting("large", triaged=True), "refused", "weights of 41.5 GB, above 40")
        add(lineage, waiting("huge", triaged=True), "refused", "weights of 99.0 GB, above 40")
        lineage.add_candidate(waiting("add", triaged=True, novelty=1.0, gone=True))
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        lineage.spend("candidates", today, 7)
        lineage.spend("download_bytes", "2026-01-30", 10**12)
    return path


def add(lineage, candidate, status, reason=None):
    name = candidate.model.removeprefix("demo/")
    model = finetune(name, status=status, reason=reason, cause=None if reason is None else "model")
    lineage.add_model(replace(model, weights=None))
    lineage.add_candidate(candidate)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """The same with thousands more: refused for reasons of their own, and waiting. To be read."""
    home = filled(tmp_path_factory.mktemp("crowded") / "home")
    ids = [f"org/model-{number}" for number in range(THOUSANDS)]
    with open_lineage(home / "lineage.db") as lineage, lineage.transaction():
        for number, name in enumerate(ids):
            refused = number % 2 == 0
            lineage.add_model(
                Model(
                    id=name,
                    kind="finetune",
                    status="refused" if refused else "seen",
                    reason=f"weights of {len(name)} GB" if refused else None,
                    cause="model" if refused else None,
                    repo=name,
                    revision="1" * 40,
                )
            )
            facts = waiting("x", downloads=3, triaged=True, novelty=0.5)
            lineage.add_candidate(replace(facts, model=name))
            lineage.submit("triage", {"repo": name}, name)
    return home


@pytest.fixture
def call(monkeypatch, capfd):
    return lambda *arguments: command.call(arguments, monkeypatch, capfd)


def table(out):
    """The cells of the rows under the heads."""
    rows = out.splitlines()
    first = next(n for n, row in enumerate(rows) if row.split()[:1] == ["place"])
    return [row.split() for row in rows[first + 1 :] if row.startswith("    ")]


def test_who_waits_is_shown_in_the_order_of_admission_then_of_triage(call, home):
    shown = table(call("candidates", "--home", home, "--status", "waiting").out)
    assert [row[:3] for row in shown] == [
        ["1", "0.900", "demo/far"],
        ["2", "0.600", "demo/near"],
        ["-", "-", "demo/new"],
    ]
    assert shown[0][3:] == ["0.900", "±", "0.010", "0", "0", "14.5", "GB", "triaged"]
    assert shown[2][3:] == ["-", "9", "1", "-", "noticed"]


def test_the_order_follows_the_daemons_own_config(call, home, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"home: {home}\nadmission: {{novelty: 0, popularity: 2}}\n")
    by_file = call("candidates", "--config", file)
    by_flag = call("candidates", "--home", home, "--set", "admission.novelty=0")
    for result in (by_file, by_flag):
        assert [row[2] for row in table(result.out)][:2] == ["demo/near", "demo/far"]
        assert "defaults" not in result.out
    assert "admission.popularity 2" in by_file.out
    assert "(defaults; --config FILE" in call("candidates", "--home", home).out


def test_the_overview_groups_reasons_and_says_what_was_spent_and_who_is_gone(call, home):
    out = call("candidates", "--home", home).out
    assert "3 waiting, 1 of them for triage\n" in out
    assert (
        "     2  weights of … GB, above 40 (model; opens again by `retry`): demo/huge, demo/large\n"
        in out
    )
    assert "     1  a quantised copy (model; opens again by `retry`): demo/gguf\n" in out
    assert "2 admitted; gone: demo/add\n" in out
    assert "7 of 1,000 looks, 0 B of 1000 GB fetched" in out, "yesterday's bytes are not today's"


def test_every_refused_one_is_named_under_its_reason(call, crowded):
    out = call("candidates", "--home", crowded, "--status", "refused").out
    assert sum("org/model-" in line for line in out.splitlines()) == THOUSANDS / 2
    short = call("candidates", "--home", crowded, "--status", "refused", "--limit", 2).out
    assert "    org/model-0\n    org/model-10\n    and 4,998 more\n" in short


def test_a_status_that_nobody_has_says_so(call, home):
    assert call("candidates", "--home", home, "--status", "quarantined").out == (
        "nobody is quarantined\n"
    )


def test_gone_models_are_marked(call, home):
    assert "demo/add (gone)" in call("candidates", "--home", home, "--status", "admitted").out


def test_machines_get_every_row_and_the_budgets(call, home):
    found = json.loads(call("candidates", "--home", home, "--json").out)
    assert [row["model"] for row in found["waiting"]] == ["demo/far", "demo/near", "demo/new"]
    assert [row["place"] for row in found["waiting"]] == [1, 2, None]
    assert found["waiting"][0]["bytes"] == 14_500_000_000
    assert {row["model"]: row["reason"] for row in found["refused"]}["demo/gguf"] == (
        "a quantised copy"
    )
    assert found["counts"] == {"waiting": 3, "refused": 3, "quarantined": 1, "admitted": 2}
    assert found["spent"] == {"candidates": 7, "download_bytes": 0}
    assert found["limits"] == {"candidates_per_day": 1000, "download_gb_per_day": 1000.0}
    one = json.loads(
        call("candidates", "--home", home, "--json", "--status", "refused", "--limit", 1).out
    )
    assert [row["model"] for row in one["refused"]] == ["demo/gguf"]
    assert "waiting" not in one


def test_it_is_told_beside_a_running_daemon(call, home):
    with Home(home).hold(), open_lineage(home / "lineage.db") as at_work, at_work.transaction():
        at_work.move_model("demo/far", "refuse", reason="changed", cause="model")
        result = call("candidates", "--home", home, "--status", "waiting")
    assert result.code == 0, result.err
    assert "demo/far" in result.out, "what is not committed is not told"


def test_thousands_are_told_in_a_screenful_without_torch(crowded, tmp_path):
    # In a process of its own: this one has torch.
    script = (
        "import sys; from kinship_daemon.cli import main\n"
        "main(); print('torch' in sys.modules, file=sys.stderr)"
    )
    for name in ("candidates", "status"):
        done = subprocess.run(
            [sys.executable, "-c", script, name, "--home", str(crowded)],
            env=command.environment(tmp_path),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stderr.strip() == "False"
        assert len(done.stdout.splitlines()) < 50


def test_status_counts_many_that_were_set_aside_by_reason(call, crowded):
    out = call("status", "--home", crowded).out
    told = [line for line in out.splitlines() if line.startswith("refused")]
    by_hand = "(model; opens again by `retry`)"
    assert told == [
        f"refused     5,000  weights of … GB {by_hand}: org/model-0, org/model-10, …",
        f"refused     2  weights of … GB, above 40 {by_hand}: demo/huge, demo/large",
        f"refused     1  a quantised copy {by_hand}: demo/gguf",
    ]
    assert f"kinship-daemon candidates --home {crowded} --status refused" in out
    assert "quarantined demo/bad: NaN in lm_head.weight" in out


def test_status_names_a_few_that_were_set_aside_one_by_one(call, home):
    out = call("status", "--home", home).out
    assert (
        "refused     demo/huge: weights of 99.0 GB, above 40 (model; opens again by `retry`)\n"
        in out
    )
    assert "kinship-daemon candidates" not in out


def test_status_says_of_a_lineage_what_it_holds(call, home):
    found = json.loads(call("status", "--home", home, "--json").out)
    assert found["models"] == {
        "base": {"admitted": 1},
        "finetune": {"admitted": 2, "quarantined": 1, "refused": 3, "seen": 3},
        "merge": {"admitted": 1},
    }
    assert found["jobs"] == {"done": 1}
    assert (found["base"], found["decisions"]) == ("demo/base", 2)
    assert found["best"] == {"model": "m1", "score": 1.0, "split": "selection"}
    assert [line["model"] for line in found["set_aside"]] == [
        *("demo/bad", "demo/gguf", "demo/huge", "demo/large")
    ]


def test_reasons_that_differ_in_names_and_numbers_are_one():
    given = [
        ("b", "the same weights as org/one"),
        ("a", "the same weights as org/two"),
        ("c", "only pickle weights (pytorch_model-00001.bin, x.bin)"),
        ("d", None),
    ]
    assert [(each.text, each.models) for each in by_reason(given)] == [
        ("the same weights as …", ("a", "b")),
        ("no reason on record", ("d",)),
        ("only pickle weights (pytorch_model-00001.bin, x.bin)", ("c",)),
    ]
    assert list(lines(by_reason(given), names=1, most=1)) == [
        "     2  the same weights as …: a, …",
        "     2  for 2 other reasons",
    ]


def test_words_of_their_own_that_all_share_are_told():
    given = [("a", "[32001, 8] against [32000, 8]"), ("b", "[32002, 8] against [32000, 8]")]
    (only,) = by_reason(given)
    assert only.text == "[…, 8] against [32000, 8]"


def test_home_folder_without_a_lineage_is_one_line(call, tmp_path):
    result = call("candidates", "--home", Path(tmp_path))
    assert result.code == 2
    assert result.err.count("\n") == 1


def test_who_is_no_plain_fine_tune_is_marked_and_explain_says_why(call, home):
    heads = call("candidates", "--home", home).out
    assert "ancestry" not in heads, "a column for those that are marked"
    with open_lineage(home / "lineage.db") as lineage:
        lineage.update_candidate("demo/near", ancestry=MERGED)
        lineage.update_candidate("demo/far", ancestry=STRANGER)
    far, near, new = table(call("candidates", "--home", home, "--status", "waiting").out)
    assert far[-3:] == ["triaged", "no", "descendant"]
    assert near[-3:] == ["triaged", "a", "merge"]
    assert new[-1] == "noticed"
    told = call("explain", "demo/near", "--home", home).out
    assert "a merge: 0.500 ± 0.001 demo/add + 0.400 ± 0.001 demo/sort; rest 0.2 %" in told
    told = call("explain", "demo/far", "--home", home).out
    assert "no descendant (cosine with the base 0.010, 13 of 14 matrices unlike its)" in told
