"""Outside a stage: its parameters, whether its last result still stands and why not, and how a new one takes its place.

A stage is a notebook. Its result stands while nothing it depends on changed: the code of its cells (prose, exercises
and the defaults of parameters aside), the sources it imports, its parameters, what the stages before it gave, and its
own artifacts. The manifest records all of these; it is written last, so that its being there means success.
"""

import ast
import json
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from lib import sources
from lib.errors import InputError
from lib.launch import CELL, LOG, NOTEBOOKS, RESULT
from lib.stage import DATA, FINISHED, ROOT, data_digest, file_hash, sync, write_json

PROFILES = NOTEBOOKS / "profiles"
# Each stage with the stages it reads; those in brackets where they exist, "x if p" where its parameter p is true.
STAGES: dict[str, list[str]] = {
    "01_data_inspection": [],
    "02_prompting": ["01_data_inspection"],
    "03_sft": ["01_data_inspection", "02_prompting if from_prompting"],
    "04_rft_generation": ["01_data_inspection", "02_prompting if from_prompting"],
    "05_dpo_self_training": ["01_data_inspection"],
    "06_dot_training": ["01_data_inspection", "(04_rft_generation)"],
    "07_coconut_stages": ["01_data_inspection", "(03_sft)"],
    "08_dtw_tokenizer_alignment": ["01_data_inspection", "(03_sft)"],
    "09_evaluation": [
        "01_data_inspection",
        "(02_prompting)",
        "(03_sft)",
        "(04_rft_generation)",
        "(05_dpo_self_training)",
        "(06_dot_training)",
        "(07_coconut_stages)",
        "(08_dtw_tokenizer_alignment)",
    ],
}
ASIDE_TAGS = {"exercise", "check", "break-it"}  # cells for the reader; they make no artifact
BOOKKEEPING = {"manifest.json", RESULT, CELL, LOG, FINISHED, "job.json", "notebook.ipynb", "notebook.html"}
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "papermill",
    "numpy",
    "matplotlib",
    "vllm",
)


# ----- notebooks and parameters
def cells(stage: str) -> list[dict]:
    """The code cells of a stage's notebook, each {"source", "tags"}."""
    file = NOTEBOOKS / f"{stage}.ipynb"
    try:
        notebook = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read the notebook {file} ({error}); restore it.") from None
    return [
        {"source": "".join(cell["source"]), "tags": set(cell["metadata"].get("tags", []))}
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def defaults(stage: str) -> dict[str, tuple[object, str]]:
    """{name: (default value, annotation)} of a stage's parameters cell, in order."""
    (source,) = [cell["source"] for cell in cells(stage) if "parameters" in cell["tags"]]
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign):
            found[node.target.id] = (ast.literal_eval(node.value), ast.unparse(node.annotation))
    return found


def fits(value: object, annotation: str) -> bool:
    """Is `value` (from JSON) of the annotated type? Knows bool, int, float, str, list[...], Optional[...]."""
    if inner := re.fullmatch(r"Optional\[(.*)\]", annotation):
        return value is None or fits(value, inner[1])
    if inner := re.fullmatch(r"list\[(.*)\]", annotation):
        return isinstance(value, list) and all(fits(item, inner[1]) for item in value)
    if annotation == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    kind = {"bool": bool, "int": int, "str": str}[annotation]
    return isinstance(value, kind) and (annotation == "bool" or not isinstance(value, bool))


def set_parameter(parameters: dict, stage: str, name: str, value: object, where: str) -> None:
    """Set one parameter after checking stage, name and type; `where` says who asked, for the InputError."""
    if stage not in STAGES:
        raise InputError(f"{where}: there is no stage {stage!r}; the stages are {', '.join(STAGES)}.")
    known = {key: kind for key, (_, kind) in defaults(stage).items() if key != "run"}
    if name not in known:
        raise InputError(f"{where}: {stage} has no parameter {name!r}; it has {', '.join(known)}.")
    if value == []:
        raise InputError(f"{where}: {stage}.{name} must not be empty.")
    if not fits(value, known[name]):
        raise InputError(f"{where}: {stage}.{name} must be {known[name]}, not {json.dumps(value, default=str)}.")
    parameters[stage][name] = value


def resolve(profile: str | None, assignments: list[str]) -> dict[str, dict]:
    """Every stage's parameters: notebook defaults < profile < assignments "stage.name=JSON". Raises InputError."""
    parameters = {stage: {k: v for k, (v, _) in defaults(stage).items() if k != "run"} for stage in STAGES}
    for stage, values in read_profile(profile).items():
        where = f"profile {profile}"
        if not isinstance(values, dict):
            raise InputError(f"{where}: {stage} must hold parameters, one a line, not {values!r}.")
        for name, value in values.items():
            set_parameter(parameters, stage, name, value, where)
    for text in assignments:
        match = re.fullmatch(r"([^.=]+)\.([^.=]+)=(.*)", text, re.DOTALL)
        if not match:
            raise InputError(f"-p {text}: expected stage.name=JSON, such as 03_sft.steps=300.")
        stage, name, value = match.groups()
        try:
            value = json.loads(value, parse_constant=refuse)
        except ValueError:
            raise InputError(
                f"-p {text}: {value!r} is not JSON; a text needs quotes: -p '{stage}.{name}=\"text\"'."
            ) from None
        set_parameter(parameters, full_name(stage, f"-p {text}"), name, value, f"-p {text}")
    return parameters


def refuse(name: str):
    """NaN and Infinity are Python's, not JSON; and as a parameter, NaN would never equal itself."""
    raise ValueError(name)


def read_profile(name: str | None) -> dict:
    """{stage: {parameter: value}} of a profile file; {} without a name. Raises InputError, with the known names."""
    if name is None:
        return {}
    import yaml

    file = PROFILES / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in PROFILES.glob("*.yaml")))
        raise InputError(f"There is no profile {name!r}; the profiles are {known}.")
    try:
        content = yaml.safe_load(file.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected stages with their parameters, found a {type(content).__name__}.")
    return content


def full_name(stage: str, where: str) -> str:
    """The stage that `stage` is or begins ("03" is 03_sft). Raises InputError."""
    found = [name for name in STAGES if name == stage] or [name for name in STAGES if name.startswith(stage)]
    if len(found) != 1:
        raise InputError(f"{where}: there is no stage {stage!r}; the stages are {', '.join(STAGES)}.")
    return found[0]


# ----- plan, manifest, commit
def reads(stage: str, parameters: dict) -> list[str]:
    """The stages that a stage with these parameters reads; those in brackets where they exist."""
    named = [name.partition(" if ") for name in STAGES[stage]]
    return [name for name, _, wanted_by in named if not wanted_by or parameters[wanted_by]]


def read_manifest(directory: Path) -> dict | None:
    """A finished stage's manifest; None where there is none, or none that can be read."""
    try:
        manifest = json.loads((directory / "manifest.json").read_text())
        return manifest if {"plan", "artifacts"} <= set(manifest) else None
    except (OSError, ValueError, TypeError):
        return None


def plan(stage: str, parameters: dict, run_directory: Path) -> dict:
    """All that the stage's result depends on. Raises InputError where a stage it reads is missing."""
    code = [c for c in cells(stage) if not c["tags"] & ASIDE_TAGS and "parameters" not in c["tags"]]
    code = [re.sub(r"(?m)^\s*[%!].*$", "", cell["source"]) for cell in code]  # Jupyter's own commands
    inputs = {}
    for name in reads(stage, parameters):
        manifest = read_manifest(run_directory / name.strip("()"))
        if manifest is None and "(" not in name:
            raise InputError(
                f"{stage} reads {name}, which this run does not have yet; "
                f"make it with: python run_all.py --run {run_directory.name} --only {name} "
                "(and the run's --profile, if it has one)"
            )
        inputs[name.strip("()")] = manifest and data_digest(manifest["artifacts"])
    try:
        cells_hash, imported = sources.code_hash("\n".join(code)), sources.of_cells(code)
    except SyntaxError as error:
        raise InputError(f"{stage}, or a module it imports, is not Python: {error}; mend it.") from None
    files = files_named(parameters)
    return {"cells": cells_hash, "sources": imported, "parameters": parameters, "files": files, "inputs": inputs}


def files_named(parameters: dict) -> dict:
    """{parameter: [(file, bytes, time)]} for every text that names a file or folder of the project or of data/."""
    found = {}
    for name, value in parameters.items():
        for place in (ROOT / value, DATA / value) if isinstance(value, str) and value else ():
            files = sorted(place.rglob("*")) if place.is_dir() else [place] if place.is_file() else []
            stats = [(str(file), file.stat()) for file in files if file.is_file()]
            if stats:
                found[name] = [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]
    return found


def why_stale(stage: str, directory: Path, new: dict) -> str | None:
    """Why the stage must run, in a few words; None while its last result stands."""
    manifest = read_manifest(directory)
    if manifest is None:
        return "it has no result yet"
    old = manifest["plan"]
    for name, value in new["parameters"].items():
        if old["parameters"].get(name, "unset") != value:
            return f"parameter {name}: {json.dumps(old['parameters'].get(name, 'unset'))} -> {json.dumps(value)}"
    if set(old["parameters"]) != set(new["parameters"]):
        return "its parameters have other names"
    for name in sorted(set(old["sources"]) | set(new["sources"])):
        if old["sources"].get(name) != new["sources"].get(name):
            return f"{name} changed"
    if old.get("files") != new.get("files"):
        return "a file that its parameters name changed"
    if old["cells"] != new["cells"]:
        return "the notebook's code changed"
    for name in new["inputs"]:
        if old["inputs"].get(name) != new["inputs"][name]:
            return f"{name} gave something else"
    for name, artifact in manifest["artifacts"].items():
        if not same_file(directory / name, artifact):
            return f"its artifact {name} is missing or was changed"
    return None


def same_file(path: Path, artifact: dict) -> bool:
    """Is the file what the manifest says? Size and time suffice; where the time differs, the bytes decide."""
    if not path.is_file() or path.stat().st_size != artifact["bytes"]:
        return False
    return path.stat().st_mtime_ns == artifact["mtime_ns"] or file_hash(path) == artifact["sha256"]


def recover(directory: Path) -> None:
    """Finish what a killed commit left: the old result returns if the new one had not taken its place."""
    old = directory.with_name(directory.name + ".old")
    if old.exists():
        if directory.exists():
            shutil.rmtree(old)
        else:
            old.rename(directory)


def commit(stage: str, directory: Path, plan: dict, started: str, ended: str) -> dict:
    """Write the manifest of `<stage>.partial/`, then let it take the place of `<stage>/`. Returns the manifest."""
    partial = directory.with_name(directory.name + ".partial")
    artifacts = {}
    for file in sorted(partial.rglob("*")):
        name = str(file.relative_to(partial))
        if file.is_file() and name not in BOOKKEEPING:
            stat = file.stat()
            artifacts[name] = {"sha256": file_hash(file), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    manifest = {
        "stage": stage,
        "started": started,
        "ended": ended,
        "plan": plan,
        "seeds": plan["parameters"].get("seeds"),
        "code": git_state(),
        "machine": machine(),
        "packages": versions(),
        "artifacts": artifacts,
    }
    for name in (RESULT, CELL, FINISHED, "job.json"):
        (partial / name).unlink(missing_ok=True)
    sync(partial)
    write_json(partial / "manifest.json", manifest)
    old = directory.with_name(directory.name + ".old")
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    if old.exists():
        shutil.rmtree(old)
    return manifest


def git_state() -> dict:
    """{"commit", "changed"}: the commit checked out, and whether files differ from it; None where git can't tell."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed": None}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict:
    """{"system", "processor", "cores", "gpu"}: where a stage ran."""
    import os

    gpu = None
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True).stdout.strip() or None
    return {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count(), "gpu": gpu}
