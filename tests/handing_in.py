"""Hand-ins to grade and to bundle: lessons as a student has them, and a run with untrained models of every part."""

import json
import re
from pathlib import Path

from lib import models, prompts, tokenization
from lib.lessons import build
from lib.tasks import units

ROOT = Path(__file__).parents[1]
PLAN = """
title = "Small"
questions = {questions}
max_parameters = {most}
base = "units/base"
max_new_tokens = 12
seconds = 120
profile = "units"
[[parts]]
name = "labels"
points = 20
exercises = ["3.1"]
[[parts]]
name = "chat"
points = 30
model = "base"
form = "chat"
accuracy = [0.0, 0.4]
[[parts]]
name = "SFT"
points = 25
model = "units/sft"
accuracy = [0.4, 0.6]
bonus_to = 0.8
bonus_points = 5
[[parts]]
name = "RFT"
points = 25
model = "units/rft"
better_than = "units/sft"
difference = [0.0, 0.2]
[files]
"units/base" = "02_prompting/models/units_formats_seed0"
"units/prompt.json" = "02_prompting/prompt.json"
"units/sft" = "03_sft/models/units_answer_only_seed0"
"units/rft" = "04_rft_generation/models/units_rft_k10_seed0"
"units/rft.json" = "04_rft_generation/rft/units_seed0_k10.json"
"""
BASE, PROMPT, SFT, RFT, ROWS = re.findall(r'^"units.* = "(.*)"$', PLAN, re.MULTILINE)


def small_plan(path: Path, questions: int = 20, most: int = 5_000_000, only: str = "") -> str:
    """A plan of four parts, or of the one named `only`, in a file of its own."""
    head, *parts = PLAN.format(questions=questions, most=most).split("[[parts]]")
    parts[-1], files = parts[-1].split("[files]")
    kept = [part for part in parts if not only or f'name = "{only}"' in part]
    path.write_text("[[parts]]".join([head, *kept]) + "[files]" + files)
    return str(path)


def save_adapter(base: Path, folder: Path, rank: int) -> None:
    """An untrained LoRA adapter of a rank, saved with its copy of the tokenizer as training leaves it."""
    import peft

    model, tokenizer = models.load_model(str(base), device="cpu")
    models.save_model(peft.get_peft_model(model, models.lora_config(model, rank)), tokenizer, folder)


def save_run(run: Path, rank: int = 4) -> Path:
    """outputs/<run> with everything that PLAN finds there."""
    problems = units.generate(40, seed=0)
    tokenizer = tokenization.build_tokenizer([p.question + prompts.tagged(p) for p in problems], 320)
    tokenizer.chat_template = prompts.CHATML
    models.seed_everything(0)
    model, _ = models.load_model("llama_2x128", tokenizer, device="cpu")
    models.save_model(model, tokenizer, run / BASE)
    for place in (SFT, RFT):
        save_adapter(run / BASE, run / place, rank)
    shots = [[p.question, prompts.tagged(p)] for p in problems[:1]]
    rows = [[p.question, float(p.answer), prompts.tagged(p)] for p in problems[:3]]
    for place, found in ((PROMPT, {"system": "Answer in tags.", "shots": shots}), (ROWS, rows)):
        (run / place).parent.mkdir(parents=True, exist_ok=True)
        (run / place).write_text(json.dumps(found))
    return run


def with_function(notebook: str, sources: dict[str, str]) -> str:
    """A lesson's student copy whose exercise cells hold `sources` (by function)."""
    found = json.loads(build.student_copy(ROOT / "notebooks" / notebook)[0])
    for cell in found["cells"]:
        for name, source in sources.items():
            if "exercise" in cell["metadata"].get("tags", []) and f"def {name}(" in "".join(cell["source"]):
                cell["source"] = source
    return build.write_notebook(found)
