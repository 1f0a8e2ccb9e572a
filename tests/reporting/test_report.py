import json
import shutil
from html.parser import HTMLParser

import fake_run
import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.reporting import run_files, table
from nemo_thinkprune.reporting.report import write_report, write_results
from nemo_thinkprune.reporting.summary import build_summary


class Page(HTMLParser):
    """Tags with attributes, and the text outside of style."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self._open = [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        if "style" not in self._open:
            self.words.append(data)


def report(folder) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fake_run.write_prune(tmp_path_factory.mktemp("runs") / "quickstart")


def test_summary_has_each_stage_with_its_numbers(finished):
    summary = build_summary(finished)
    assert (summary["kind"], summary["status"], summary["missing"]) == ("prune", "finished", [])
    assert [r["limit"] for r in summary["rounds"]] == [128, 96, 64]
    assert [r["selected_step"] for r in summary["rounds"]] == [10, 10, 10]
    start = json.loads((finished / "eval" / "start.json").read_text())
    last = json.loads((finished / "eval" / "round_3_L64.json").read_text())
    assert summary["baseline"]["accuracy"] == start["accuracy"]
    entry = summary["rounds"][2]
    assert entry["tokens_change"] == pytest.approx(last["mean_tokens"] / start["mean_tokens"] - 1)
    assert entry["accuracy_change"] == pytest.approx(last["accuracy"] - start["accuracy"])
    assert entry["accuracy_change_se"] > 0
    assert entry["accuracy_within_limit"] == last["accuracy_at"]["64"]
    assert summary["control"]["label"] == "control" and summary["control"]["limit"] is None
    assert summary["settings"]["limit"] == 240


def test_table_lists_warm_up_rounds_and_control(finished):
    lines = table.results_table(build_summary(finished)).split("\n")
    assert lines[0].startswith("stage") and "accuracy % at 240" in lines[0]
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "after warm-up",
        "L = 128",
        "L = 96",
        "L = 64",
        "control",
    ]
    assert "−" in lines[4] and "±" in lines[4]


def test_report_is_one_page_that_asks_for_nothing(finished):
    page = report(finished)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "form"}
    for _, attributes in page.tags:
        assert not any(key in ("src", "href") or key.startswith("on") for key in attributes)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    html = (finished / "report.html").read_text()
    assert "@import" not in html and "url(" not in html


def test_report_has_every_part(finished):
    page = report(finished)
    for heading in (
        "Accuracy and length by round", "Response lengths", "Thoughts before and after", "Training",
        "Selected checkpoints", "Configuration", "Environment",
    ):  # fmt: skip
        assert heading in page.text
    assert (
        sum(tag == "svg" for tag, _ in page.tags) == 14
    )  # a wide chart is there twice, for wide and narrow screens
    assert "a limit of 64 cuts here" in page.text
    assert "2 of 2 checkpoints kept accuracy" in page.text and "+1.6%" in page.text
    assert "Warm-up: loss" in page.text
    assert "128 > 96 > 64" in page.text and "2.13.0" in page.text
    assert "the gap between the two is the limits' part" in page.text


def test_model_output_cannot_become_markup(tmp_path):
    page = report(fake_run.write_prune(tmp_path / "run", hostile=True))
    names = [tag for tag, _ in page.tags]
    assert "script" not in names and "img" not in names
    assert "<script>alert('x')</script>" in page.text  # it is shown, as text


def test_a_hostile_config_and_decision_stay_text(tmp_path):
    root = fake_run.write_prune(tmp_path / "run")
    (root / "config.yaml").write_text(f"policy: {{model_name: {json.dumps(fake_run.HOSTILE)}}}\n")
    decision = json.loads((root / "round_1_L128" / "decision.json").read_text())
    fake_run.write_json(root / "round_1_L128" / "decision.json", decision | {"reason": fake_run.HOSTILE})
    assert "script" not in [tag for tag, _ in report(root).tags]


def test_a_running_prune_says_what_is_missing(tmp_path):
    root = fake_run.write_prune(tmp_path / "run")
    (root / "round_3_L64" / "decision.json").unlink()
    for name in ("round_2_L96", "round_3_L64", "control"):
        (root / "eval" / f"{name}.json").unlink()
    with (root / "round_3_L64" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 11, "reward_me')  # the writer is in the middle of a line
    summary = build_summary(root)
    assert summary["status"] == "partial"
    assert summary["missing"] == [
        "evaluation of round 2 (limit 96)", "round 3 (limit 64), still training",
        "evaluation of the control run",
    ]  # fmt: skip
    assert [r["limit"] for r in summary["rounds"]] == [128]
    page = report(root)
    assert "partial" in page.text and "round 3 (limit 64), still training" in page.text


@pytest.mark.parametrize("kept", [["warmup"], ["config.yaml", "round_1_L128"], ["eval"]])
def test_a_run_that_has_barely_begun_still_gets_a_report(tmp_path, kept):
    root = fake_run.write_prune(tmp_path / "run")
    for path in root.iterdir():
        if path.name not in kept:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    (root / "round_1_L128" / "decision.json").unlink(missing_ok=True)
    assert "partial" in report(root).text


def test_damaged_files_are_skipped(tmp_path):
    root = fake_run.write_prune(tmp_path / "run")
    (root / "eval" / "control.json").write_text("{")
    (root / "eval" / "round_1_L128.json").write_text('{"accuracy": "high"}')
    (root / "eval" / "start.jsonl").write_text('{"problem_id": "p1"}\n[]\nnonsense\n')
    (root / "config.yaml").write_text("a: [")
    fake_run.write_json(root / "round_2_L96" / "decision.json", {"round": 2})
    (root / "environment.json").write_text("[]")
    page = report(root)
    assert "Round 2" in page.text and "the run recorded none" in page.text


def test_a_train_run_is_shown_by_its_rollouts(tmp_path):
    fake_run.write_train(tmp_path, steps=4)
    (tmp_path / "config.yaml").write_text("grpo: {max_num_steps: 4}\n")
    for step, checks in ((1, 0.5), (4, 0.1)):
        rows = fake_run.sample_rows(checks=checks, skill=0.9, limit=128, problems=12)
        fake_run.write_jsonl(tmp_path / "rollouts" / f"step_{step}.jsonl", rows)
    summary = build_summary(tmp_path)
    assert (summary["kind"], summary["status"], summary["train"]["steps"]) == ("train", "finished", 4)
    page = report(tmp_path)
    assert "4 steps: mean reward" in page.text and "typical saving" in page.text
    assert "Selected checkpoints" not in page.text and "step 4" in page.text


def test_a_train_run_with_one_step_only(tmp_path):
    fake_run.write_train(tmp_path, steps=1)
    page = report(tmp_path)
    assert "no responses of a first and a last model" in page.text
    assert "no config.yaml" in page.text


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        write_report(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        write_report(tmp_path)


def test_rows_replaced_after_a_resume_win(tmp_path):
    fake_run.write_jsonl(
        tmp_path / "metrics.jsonl", [{"step": 1, "kl": 1}, {"step": 2}, {"step": 1, "kl": 2}]
    )
    assert [r.get("kl") for r in run_files.read_train(tmp_path).steps] == [2]


def test_validation_inside_a_step_row_is_found(tmp_path):
    measured = {"accuracy": 0.5, "mean_tokens": 9}
    fake_run.write_jsonl(tmp_path / "metrics.jsonl", [{"step": 5, "kl": 1, "validation": measured}])
    train = run_files.read_train(tmp_path)
    assert train.validation == ({"step": 5, **measured},) and len(train.steps) == 1


def test_evaluation_table_reads_line_by_line(finished):
    measured = json.loads((finished / "eval" / "start.json").read_text())
    text = table.evaluation_table(measured)
    assert "accuracy within 64 tokens %" in text and "pass@4 %" in text and "60 × 4" in text


def test_results_are_written_together(tmp_path):
    fake_run.write_train(tmp_path, steps=2)
    summary = write_results(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert build_summary(tmp_path) == summary  # the file itself changes nothing
    assert (tmp_path / "report.html").exists()


def test_a_train_run_that_saw_no_prompt_twice_shows_each_with_its_own(tmp_path):
    fake_run.write_train(tmp_path, steps=2)
    rows = fake_run.sample_rows(checks=0.3, skill=0.9, limit=128, problems=4)
    fake_run.write_jsonl(tmp_path / "rollouts" / "step_1.jsonl", rows[:8])
    fake_run.write_jsonl(tmp_path / "rollouts" / "step_2.jsonl", rows[8:])
    page = report(tmp_path)
    assert "different prompts" in page.text and "Chosen by rule" not in page.text
    assert all(rows[i]["prompt"] in page.text for i in (0, 8))
