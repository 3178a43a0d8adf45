"""A report is whole in JSON, readable in Markdown, and one page of HTML that needs nothing beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest

from mimeval.deployments import SkippedDeployment
from mimeval.drift import Drift, measure, to_rounding, too_far
from mimeval.lost_images import lost_images
from mimeval.markdown import as_markdown
from mimeval.page import as_page
from mimeval.plots import frontier
from mimeval.regression import compare, read_baseline, write_baseline
from mimeval.report import TORCH, DeploymentDrift, Example, Gain, Report, Sample, Score, encode, score
from mimeval.report_files import write_reports
from mimeval.statistics import LOSES, Interval, judge_gain, mcnemar
from mimeval.summary import engine_name, headlines, labelled, open_questions
from mimeval.verdict import explain
from mimruntime import writing
from mimruntime.errors import OutputError

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def report() -> Report:
    """Two models on one engine, the second of which lost its gain there."""
    rng = np.random.default_rng(0)
    difficulty = rng.random(2000)
    right = {"cls": difficulty < 0.3, "mean": difficulty < 0.4, "topk": difficulty < 0.4}
    engine = {"cls": right["cls"], "mean": right["mean"], "topk": difficulty < 0.31}
    scores, gains = [], []
    for model, values in right.items():
        scores.append(score(model, TORCH, "k-NN", "torch", values, seed=0))
        scores.append(score(model, "ort fp32", "k-NN", "torch", engine[model], seed=0))
        scores.append(score(model, "ort fp32", "5-shot", "torch", engine[model] * 0.5, seed=0))
        if model != "cls":
            found = judge_gain(values, right["cls"], engine[model], engine["cls"], margin=0.01)
            gains.append(
                Gain(
                    model=model, baseline="cls", deployment="ort fp32", metric="k-NN", fitted="torch", found=found,
                    mcnemar=mcnemar(engine[model], values), decides=True,
                )
            )  # fmt: skip
    drift = Drift(0.9, 0.99999, 1.0, 1.0, None, 2000)
    return Report(
        verdict="fail",
        reasons=["topk on ort fp32: <script>alert(1)</script> the gain shrank"],
        dataset="drawn & quartered",
        digest="d",
        images={"torch": 2000, "engines": 2000, "training": 10},
        classes=10,
        metric="k-NN",
        margin=0.01,
        seed=0,
        names=[f"image {row}" for row in range(2000)],
        notes=[],
        skipped=[SkippedDeployment("topk", "tensorrt fp16", "no GPU", "missing")],
        scores=scores,
        gains=gains,
        drifts=[
            DeploymentDrift(model=name, deployment="ort fp32", drift=drift, problem=None, rate=100.0) for name in right
        ],
        samples=[Sample(model="topk", deployment="ort fp32", image="a/b.jpg", png=PNG, shares=[[0.5, 0], [0.5, 0]])],
    )


def renamed(scores: list[Score], deployment: str) -> list[Score]:
    """Return the rows of the engine under another deployment's name."""
    return [msgspec.structs.replace(row, deployment=deployment) for row in scores if row.deployment != TORCH]


def on_engine(report: Report, deployment: str) -> Report:
    """Return a report that passed, its engine's rows under another deployment's name."""
    of_torch = [row for row in report.scores if row.deployment == TORCH]
    return msgspec.structs.replace(
        report,
        verdict="pass",
        reasons=[],
        scores=of_torch + renamed(report.scores, deployment),
        drifts=[msgspec.structs.replace(row, deployment=deployment) for row in report.drifts],
    )


class Elements(HTMLParser):
    """Every element of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


DRAWN = {
    "gains": ("<svg", "gain over the baseline, points", "topk, ort fp32, on torch"),
    "frontier": ("<svg", "images per second, the engine alone", "k-NN, %"),
    "selections": ("<svg", "<image", "<figcaption>topk, ort fp32: b.jpg"),
}
"""What each part of a page draws."""


def section(page: str, name: str) -> str:
    """Return a page from the element called `name` to the next heading."""
    found = re.search(rf"<div [^>]*id=[\"']{name}[\"'].*?(<h2>|</body>)", page, re.DOTALL)
    assert found, name
    return found[0]


class TestJson:
    def test_it_reads_back_with_the_score_of_every_image(self, report) -> None:
        again = msgspec.json.decode(encode(report), type=Report)
        assert again == report
        row = next(row for row in again.scores if row.model == "topk" and row.deployment == TORCH)
        assert row.scores().dtype == np.bool_
        assert row.scores().mean() == pytest.approx(row.accuracy.value)
        fraction = next(row for row in again.scores if row.metric == "5-shot")
        assert fraction.scores().max() == 0.5


class TestWords:
    """The first lines say in words what was found, and what would decide the rest."""

    def test_gain_and_engines_are_a_sentence_each(self, report) -> None:
        first, second = headlines(report)
        assert re.fullmatch(
            r"mean finds the right class for 40\.\d of 100 images, cls for 30\.\d: \+\d+\.\d \[.*\] \(k-NN\)\."
            r" ort fp32 keeps all of it\.",
            first,
        )
        assert re.search(r" ort fp32 loses \d+\.\d points of it\.$", second)

    def test_an_engine_is_called_as_people_call_it(self) -> None:
        assert engine_name("onnxruntime fp32") == "ONNX Runtime fp32"
        assert engine_name("openvino bf16 in fp32") == "OpenVINO bf16 in fp32"

    def test_a_model_is_called_by_its_name_not_by_a_digest(self, report) -> None:
        title = "cls-fp32-f335f91b294b-64"
        rows = [msgspec.structs.replace(gain, baseline=title) for gain in report.gains]
        scores = [msgspec.structs.replace(row, model=title) if row.model == "cls" else row for row in report.scores]
        reasons = [
            f"{title} on ort fp32: far",
            "cls-fp32-f335f91b294b-64-raw stays",
            f"{title} final on ort fp32: near",
        ]
        named = msgspec.structs.replace(
            report,
            gains=rows,
            scores=scores,
            reasons=reasons,
            labels={title: "[cls]", f"{title} final": "[cls] (final)"},
        )
        for text in (as_markdown(named), as_page(named)):
            assert "[cls] for 30." in text
            assert "[cls] on ort fp32: far" in text
            assert f"{title} on" not in text
        assert labelled(named).reasons[1:] == [reasons[1], "[cls] (final) on ort fp32: near"]

    def test_what_is_open_says_how_many_images_would_decide_it(self, report) -> None:
        def open_(gain: Gain, needed: int | None, low: float) -> Gain:
            reference = Interval(gain.found.reference.value, low, 0.2)
            found = replace(gain.found, verdict="undecided", images_needed=needed, reference=reference)
            return msgspec.structs.replace(gain, found=found)

        mean, topk = report.gains
        rows = [open_(mean, None, -0.1), open_(topk, 9000, 0.1)]
        elsewhere = msgspec.structs.replace(open_(mean, 700, -0.1), deployment="ov fp32")
        assert open_questions(msgspec.structs.replace(report, gains=[rows[0], elsewhere, rows[0]])) == [
            "Is mean better than cls at all? About 700 test images would decide; 2,000 were seen."
        ]
        undecided = msgspec.structs.replace(report, gains=rows)
        assert open_questions(undecided) == [
            "Does ort fp32 keep the gain of topk? About 9,000 test images would decide; 2,000 were seen.",
            "Is mean better than cls at all? As estimated, no number of images would decide; 2,000 were seen.",
        ]
        page = as_page(undecided)
        assert page.index("Undecided, and what would decide it") < page.index("Gains by k-NN")
        assert "It is not shown to be better." in page

    def test_the_page_explains_its_terms_and_shows_where_the_two_differ(self, report) -> None:
        example = Example(right="topk", wrong="cls", image="a/b.jpg", label="a <b>", png=PNG)
        page = as_page(msgspec.structs.replace(report, examples=[example]))
        assert "<dt>McNemar p</dt>" in page
        assert "Right with topk, wrong with cls:" in page
        assert "a &lt;b&gt;" in page


class TestMarkdown:
    def test_it_holds_verdict_gains_drift_and_what_did_not_run(self, report) -> None:
        text = as_markdown(report)
        assert text.startswith("mean finds the right class for 40.")
        assert "**FAIL** on drawn & quartered: 2,000 test images" in text
        assert re.search(r"\| mean - cls \| ort fp32 \| torch \| \+\d+\.\d \[", text)
        assert "| **fail** |" in text
        assert "| topk | tensorrt fp16 | no GPU |" in text

    def test_what_did_not_run_for_one_reason_is_one_row(self, report) -> None:
        several = [
            SkippedDeployment(f"m{n}", f"tensorrt {kind}", "no GPU", "missing")
            for n in range(4)
            for kind in ("fp32", "fp16")
        ]
        other = SkippedDeployment("m0", "onnxruntime bf16", "no kernels", "refused")
        text = as_markdown(msgspec.structs.replace(report, skipped=[*several, other]))
        assert "| 4 artifacts | tensorrt fp32, tensorrt fp16 | no GPU |\n| m0 | onnxruntime bf16 | no kernels |" in text

    def test_every_row_has_as_many_cells_as_its_head(self, report) -> None:
        for table in re.findall(r"(?:^\|.*\n)+", as_markdown(report), re.MULTILINE):
            assert len({line.count("|") for line in table.splitlines()}) == 1


class TestPage:
    def test_it_has_its_parts_and_needs_nothing_beside_it(self, report) -> None:
        page = as_page(report)
        found = Elements(page)
        ids = {attrs.get("id") for _, attrs in found.tags}
        assert {"verdict", "gains", "frontier", "gain-table", "drift-table", "selections", "skipped"} <= ids
        links = [attrs[key] for tag, attrs in found.tags for key in ("href", "src") if key in attrs and tag != "use"]
        assert all(link.startswith(("data:", "#", "http://127.0.0.1:8010/#image=")) for link in links)
        assert found.count("script") == 0
        assert found.count("figure") == 1
        assert found.count("rect") >= 4
        for name, marks in DRAWN.items():
            assert all(mark in section(page, name) for mark in marks)
        assert "drawn & quartered" in found.text
        assert "mean, ort fp32, on torch" in found.text

    def test_what_an_engine_lost_is_linked_by_name(self, report) -> None:
        scores = {(row.model, row.deployment): row.scores() for row in report.scores if row.metric == "k-NN"}
        lost = np.flatnonzero(scores["topk", TORCH] & ~scores["topk", "ort fp32"])
        assert [found.lost for found in lost_images(report) if found.model == "topk"] == [
            tuple(report.names[row] for row in lost)
        ]
        links = [attrs["href"] for tag, attrs in Elements(as_page(report)).tags if tag == "a"]
        assert f"http://127.0.0.1:8010/#image=image%20{lost[0]}" in links
        assert len(links) == min(200, len(lost))

    def test_it_is_the_same_each_time(self, report) -> None:
        assert as_page(report) == as_page(report)

    def test_a_browser_shows_it(self, report, tmp_path) -> None:
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        if browser is None:
            pytest.skip(f"no headless browser is installed ({', '.join(BROWSERS)})")
        page = tmp_path / "page.html"
        page.write_text(as_page(report), encoding="utf-8")
        picture = tmp_path / "page.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        shot = [browser, *flags, f"--screenshot={picture}", "--window-size=1200,2000", page.as_uri()]
        subprocess.run(shot, check=True, capture_output=True, timeout=120)
        assert picture.stat().st_size > 10_000
        dumped = subprocess.run(
            [browser, *flags, "--dump-dom", page.as_uri()], check=True, capture_output=True, text=True, timeout=120
        )
        for name, marks in DRAWN.items():
            assert all(mark in section(dumped.stdout, name) for mark in marks)

    def test_the_frontier_keeps_what_nothing_beats_in_both(self) -> None:
        assert frontier([(1, 5), (2, 4), (3, 4.5), (4, 1), (2.5, 4.4)]) == [(4, 1), (3, 4.5), (1, 5)]


class TestFiles:
    def test_all_three_are_written(self, report, tmp_path) -> None:
        text = write_reports(report, tmp_path / "out" / "r")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"r.json", "r.md", "r.html"}
        assert "**FAIL**" in text
        assert (tmp_path / "out" / "r.md").read_text() == text

    def test_a_report_that_cannot_be_written_whole_leaves_the_old_one(self, report, tmp_path, monkeypatch) -> None:
        (tmp_path / "r.json").write_text("old")
        (tmp_path / "r.md").write_text("old")
        hidden = writing._hidden
        monkeypatch.setattr(writing, "_hidden", lambda at, name: hidden(at / "gone" if name == "r.html" else at, name))
        with pytest.raises(OutputError, match=r"cannot write .*r\.html: No such file"):
            write_reports(report, tmp_path / "r")
        assert {path.name for path in tmp_path.iterdir()} == {"r.json", "r.md"}
        assert (tmp_path / "r.json").read_text() == (tmp_path / "r.md").read_text() == "old"

    def test_a_place_that_cannot_be_written_is_an_error(self, report, tmp_path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="cannot write the report"):
            write_reports(report, tmp_path / "file" / "r")


class TestBaseline:
    def test_nothing_changed_is_no_regression(self, report, tmp_path) -> None:
        path = tmp_path / "baseline.json"
        passed = msgspec.structs.replace(report, verdict="pass", reasons=[])
        write_baseline(passed, path)
        write_baseline(passed, path)
        assert len(read_baseline(path)) == 1
        assert compare(passed, read_baseline(path)).verdict == "pass"

    def test_a_score_that_fell_fails(self, report, tmp_path) -> None:
        path = tmp_path / "baseline.json"
        write_baseline(report, path)
        worse = [
            score(row.model, row.deployment, row.metric, row.fitted, row.scores() & (np.arange(2000) % 5 > 0), seed=0)
            if row.deployment == TORCH and row.model == "cls"
            else row
            for row in report.scores
        ]
        found = compare(msgspec.structs.replace(report, verdict="pass", scores=worse), read_baseline(path))
        assert found.verdict == "fail"
        assert "cls on torch fp32" in found.reasons[0]
        assert "against the baseline" in found.reasons[0]

    def test_an_engine_that_is_installed_and_no_longer_runs_fails(self, report, tmp_path) -> None:
        path = tmp_path / "baseline.json"
        write_baseline(report, path)
        left = [row for row in report.scores if not (row.model == "topk" and row.deployment == "ort fp32")]
        refused = [SkippedDeployment("topk", "ort fp32", "it broke", "refused")]
        broken = msgspec.structs.replace(report, verdict="pass", scores=left, skipped=refused)
        assert compare(broken, read_baseline(path)).verdict == "fail"

    def test_a_row_that_is_gone_without_a_reason_fails(self, report, tmp_path) -> None:
        path = tmp_path / "baseline.json"
        write_baseline(report, path)
        left = [row for row in report.scores if not (row.model == "topk" and row.deployment == "ort fp32")]
        gone = msgspec.structs.replace(report, verdict="pass", reasons=[], scores=left, skipped=[])
        found = compare(gone, read_baseline(path))
        assert found.verdict == "fail"
        assert "topk on ort fp32 is in the baseline but did not run; if intended" in found.reasons[0]
        not_built = [SkippedDeployment("topk.fp32", "fp32", "not built: no extra", "missing")]
        for noted in (
            compare(gone, read_baseline(path), part=True),
            compare(msgspec.structs.replace(gone, skipped=not_built), read_baseline(path)),
        ):
            assert noted.verdict == "pass"
            assert noted.notes[-1] == "1 rows of the baseline did not run here: topk on ort fp32"

    def test_a_row_that_the_baseline_lacks_is_said_and_has_to_pass_by_itself(self, report, tmp_path) -> None:
        path = tmp_path / "baseline.json"
        write_baseline(report, path)
        added = msgspec.structs.replace(
            report, verdict="pass", reasons=[], scores=[*report.scores, *renamed(report.scores, "ort bf16")]
        )
        found = compare(added, read_baseline(path))
        assert found.verdict == "pass"
        assert found.notes[-1] == "3 rows are not in the baseline: " + ", ".join(
            f"{name} on ort bf16" for name in ("cls", "mean", "topk")
        )
        gains = [
            msgspec.structs.replace(
                gain,
                deployment=where,
                found=replace(gain.found, verdict="undecided" if gain.model == "topk" else "pass"),
            )
            for where in ("ort fp32", "ort bf16")
            for gain in report.gains
        ]
        reasons = [explain(gain) for gain in gains if gain.model == "topk"]
        unsure = msgspec.structs.replace(added, verdict="undecided", reasons=reasons, gains=gains)
        found = compare(unsure, read_baseline(path))
        assert found.verdict == "undecided"
        assert "topk on ort bf16" in found.reasons[0]
        assert found.reasons[1].startswith("of other rows, the undecided gains are those of the baseline")

    @pytest.mark.parametrize(
        ("multiplies", "before", "now", "verdict"),
        [
            (True, "ov bf16 in fp32", "ov bf16", "pass"),
            (False, "ov bf16", "ov bf16 in fp32", "pass"),
            (True, "ov bf16", "ov bf16 in fp32", "fail"),
            (False, "ov fp32", "ov fp32 in bf16", "fail"),
            (True, "ov fp32", "ov fp32 in bf16", "fail"),
            (False, "ov fp16 in fp32", "ov fp16", "pass"),
            (True, "ov int8", "ov int8 in fp32", "fail"),
        ],
    )
    def test_what_another_cpu_makes_of_a_graph_is_held_against_its_row(
        self, report, tmp_path, monkeypatch, multiplies, before, now, verdict
    ) -> None:
        monkeypatch.setattr("mimeval.coverage.multiplies_bf16", lambda: multiplies)
        path = tmp_path / "baseline.json"
        old, new = (on_engine(report, name) for name in (before, now))
        write_baseline(old, path)
        found = compare(new, read_baseline(path))
        assert found.verdict == verdict
        if verdict == "fail":
            assert f"cls on {before} is in the baseline but did not run, although {now} did" in found.reasons[0]
            return
        assert found.notes[-1].startswith(f"3 rows of the baseline did not run here: cls on {before}")
        lower = [
            score(row.model, now, row.metric, row.fitted, row.scores() & (np.arange(2000) % 5 > 0), seed=0)
            if (row.model, row.deployment, row.metric) == ("mean", now, "k-NN")
            else row
            for row in new.scores
        ]
        fell = compare(msgspec.structs.replace(new, scores=lower), read_baseline(path))
        assert fell.verdict == "fail"
        assert f"mean on {now}" in fell.reasons[0]
        unsure = [
            msgspec.structs.replace(
                gain, deployment=now, found=replace(gain.found, verdict="undecided" if gain.model == "topk" else "pass")
            )
            for gain in report.gains
        ]
        reasons = [explain(gain) for gain in unsure if gain.model == "topk"]
        undecided = msgspec.structs.replace(new, verdict="undecided", reasons=reasons, gains=unsure)
        assert compare(undecided, read_baseline(path)).verdict == "pass"

    def test_it_is_known_though_what_it_computed_in_shows_only_when_it_runs(self, report, tmp_path) -> None:
        path = tmp_path / "baseline.json"
        renamed = [
            msgspec.structs.replace(row, model="my.topk", deployment="ort fp16 in fp32") if row.model == "topk" else row
            for row in report.scores
        ]
        write_baseline(msgspec.structs.replace(report, scores=renamed), path)
        left = [row for row in renamed if row.model != "my.topk"]
        for name in ("my.topk", "my.topk.fp16"):
            refused = [SkippedDeployment(name, "ort fp16", "it broke", "refused")]
            broken = msgspec.structs.replace(report, verdict="pass", scores=left, skipped=refused)
            assert compare(broken, read_baseline(path)).verdict == "fail"

    def test_scores_of_other_images_are_not_paired(self, report, tmp_path) -> None:
        """Torch saw one image fewer, the first of those that engines do not see."""
        path = tmp_path / "baseline.json"
        engines = report.images["engines"]

        def of_torch(row: Score, kept: np.ndarray) -> Score:
            if row.deployment != TORCH:
                return row
            return score(row.model, row.deployment, row.metric, row.fitted, row.scores()[kept], seed=0)

        write_baseline(report, path)
        kept = np.arange(2000) != engines
        shifted = [of_torch(row, kept) for row in report.scores]
        found = compare(msgspec.structs.replace(report, verdict="pass", scores=shifted), read_baseline(path))
        assert found.verdict == "pass"

    def test_what_the_images_leave_undecided_passes_where_the_baseline_has_it(self, report, tmp_path) -> None:
        path = tmp_path / "baseline.json"
        unsure = [
            msgspec.structs.replace(
                gain, found=replace(gain.found, verdict="undecided" if gain.model == "topk" else "pass")
            )
            for gain in report.gains
        ]
        reasons = [explain(gain) for gain in unsure if gain.model == "topk"]
        undecided = msgspec.structs.replace(report, verdict="undecided", reasons=reasons, gains=unsure)
        write_baseline(undecided, path)
        found = compare(undecided, read_baseline(path))
        assert (found.verdict, len(found.reasons)) == ("pass", 1)
        assert "the undecided gains are those of the baseline (1 rows)" in found.reasons[0]
        more = msgspec.structs.replace(undecided, reasons=[*reasons, "chance"])
        assert compare(more, read_baseline(path)).verdict == "undecided"
        without = msgspec.structs.replace(report, scores=[row for row in report.scores if row.model != "topk"])
        write_baseline(without, path)
        assert compare(undecided, read_baseline(path)).verdict == "undecided"
        drifted = [msgspec.structs.replace(row, drift=replace(row.drift, cosine_p1=0.5)) for row in report.drifts]
        write_baseline(undecided, path)
        worse = msgspec.structs.replace(undecided, drifts=drifted)
        assert compare(worse, read_baseline(path)).verdict == "fail"

    def test_a_gain_that_is_not_there_in_torch_is_not_accepted_by_a_baseline(self, report, tmp_path) -> None:
        path = tmp_path / "baseline.json"
        none = Interval(0.0, -0.1, 0.1)
        for changed in ({"reference": none}, {}):  # no gain; and none that passes by itself
            gains = [
                msgspec.structs.replace(gain, found=replace(gain.found, verdict="undecided", **changed))
                for gain in report.gains
            ]
            reasons = [explain(gain) for gain in gains]
            undecided = msgspec.structs.replace(report, verdict="undecided", reasons=reasons, gains=gains)
            write_baseline(undecided, path)
            assert compare(undecided, read_baseline(path)).verdict == "undecided"

    def test_a_loss_in_torch_is_said_with_its_size(self, report) -> None:
        gain = report.gains[0]
        lost = replace(gain.found, verdict="fail", reason=LOSES, reference=Interval(-0.024, -0.028, -0.02))
        assert explain(msgspec.structs.replace(gain, found=lost)).endswith(f"{LOSES} (-2.4 points)")

    def test_other_images_have_no_baseline_and_that_is_said(self, report, tmp_path) -> None:
        path = tmp_path / "baseline.json"
        write_baseline(report, path)
        other = compare(msgspec.structs.replace(report, digest="other"), read_baseline(path))
        assert "no baseline for these" in other.notes[-1]

    def test_a_baseline_by_another_metric_is_another_baseline(self, report, tmp_path) -> None:
        path = tmp_path / "baseline.json"
        write_baseline(msgspec.structs.replace(report, metric="another"), path)
        assert "no baseline for these" in compare(report, read_baseline(path)).notes[-1]
        write_baseline(report, path)
        assert compare(report, read_baseline(path)).notes == report.notes


class TestDrift:
    def test_the_same_vectors_do_not_drift(self) -> None:
        table = np.random.default_rng(0).standard_normal((50, 8))
        found = measure(table, 2 * table)
        assert found.cosine_worst == pytest.approx(1)
        assert found.overlap == 1
        assert too_far(found, "fp32") is None

    def test_only_vectors_equal_to_rounding_count_as_torchs(self) -> None:
        exact = Drift(1 - 1e-7, 1.0, 1.0, 1.0, None, 50)
        assert to_rounding(exact)
        assert not to_rounding(replace(exact, cosine_worst=1 - 1e-5))
        assert not to_rounding(replace(exact, overlap=0.99))

    def test_neighbours_that_change_are_counted(self) -> None:
        rng = np.random.default_rng(0)
        found = measure(rng.standard_normal((300, 8)), rng.standard_normal((300, 8)))
        assert found.overlap == pytest.approx(10 / 299, abs=0.02)
        assert too_far(found, "int8") is not None

    def test_the_overlap_of_selections_is_that_of_the_patches_with_more_than_an_even_share(self) -> None:
        first = np.array([[[0.5, 0.5], [0, 0]], [[0.25, 0.25], [0.25, 0.25]]])
        second = np.array([[[0.5, 0], [0.5, 0]], [[0.25, 0.25], [0.25, 0.25]]])
        table = np.eye(2)
        assert measure(table, table, (first, second)).jaccard == pytest.approx((1 / 3 + 1) / 2)

    def test_nan_is_too_far(self) -> None:
        assert too_far(Drift(1.0, float("nan"), 1.0, 1.0, None, 50), "fp32") is not None

    @pytest.mark.parametrize(
        ("precision", "cosine", "overlap"),
        [("fp32", 0.9999, 0.99), ("fp16", 0.999, 0.95), ("bf16", 0.99, 0.80), ("int8", 0.90, 0.50)],
    )
    def test_every_precision_may_cost_as_much_as_its_limits_say(self, precision, cosine, overlap) -> None:
        at = Drift(0.0, cosine, 1.0, overlap, None, 50)
        assert too_far(at, precision) is None
        assert "cosine" in too_far(replace(at, cosine_p1=cosine - 1e-6), precision)
        assert "neighbours" in too_far(replace(at, overlap=overlap - 1e-6), precision)
