"""The course on units from end to end, in miniature: the profile's run, a bundle of it, and its grade."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.lessons import build, sandbox

ROOT = Path(__file__).parents[1]
TINY = {
    "01.n_problems": 600,
    "02.steps": 8,
    "02.n_test": 4,
    "02.max_new_tokens": 12,
    "03.steps": 4,
    "03.n_test": 4,
    "03.max_new_tokens": 8,
    "04.n_gold": 8,  # a model that learned nothing writes nothing that holds
    "04.n_answers": 4,
    "04.steps": 4,
    "04.n_test": 4,
    "04.max_new_tokens": 16,
}


def command(*arguments, outputs: Path, cwd: Path) -> str:
    environment = {**os.environ, "WORKBENCH_OUTPUTS": str(outputs), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(bool(sandbox.missing()), reason=str(sandbox.missing()))
def test_a_run_of_the_course_is_bundled_and_graded(tmp_path):
    outputs, stages = tmp_path / "outputs", ["01", "02", "03", "04", "09"]
    settings = [part for name, value in TINY.items() for part in ("-p", f"{name}={json.dumps(value)}")]
    only = [part for stage in stages for part in ("--only", stage)]
    command(str(ROOT / "run_all.py"), "--profile", "units", *only, *settings, outputs=outputs, cwd=ROOT)
    rows = json.loads((outputs / "units" / "09_evaluation" / "results.json").read_text())["rows"]
    assert {"chat_cot", "answer_only", "rft"} <= {row["method"] for row in rows}
    assert all(0 <= row["answer_rate"] <= 1 for row in rows)
    records = json.loads((outputs / "units" / "04_rft_generation" / "rft" / "units_seed0_k10.json").read_text())
    assert len(records) >= 8
    for question, answer, chain in records:
        assert isinstance(question, str) and isinstance(answer, float) and chain.endswith("</answer>")
    command("-m", "lib.lessons", "build", str(tmp_path / "class"), outputs=outputs, cwd=tmp_path)
    made = ["-m", "lib.lessons", "bundle", "class", "--name", "ada", "--plan", "units", "--run", "units"]
    assert "ada.zip" in command(*made, outputs=outputs, cwd=tmp_path)
    graded = ["-m", "lib.lessons", "grade", "ada.zip", "--json", "ada.json", "--seed", "3"]
    text = command(*graded, outputs=outputs, cwd=tmp_path)
    report = json.loads((tmp_path / "ada.json").read_text())
    assert "units/rft minus units/sft" in text and report["plan"] == "units"
    assert len(build.build(tmp_path / "class")) == 10  # the copies were left as they were
