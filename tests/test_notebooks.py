"""Rules that hold for every notebook and every profile, read from the files: nothing is run."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from lib import pipeline
from lib.errors import InputError

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
PROFILES = sorted((Path(__file__).parents[1] / "notebooks" / "profiles").glob("*.yaml"))
ASIDE = {"exercise", "check", "break-it"}
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
every_profile = pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)


def read(path):
    return json.loads(path.read_text())


def source(cell):
    return re.sub(r"(?m)^%.*$", "", "".join(cell["source"]))  # without Jupyter's own commands


def tags(cell):
    return set(cell["metadata"].get("tags", []))


def code(path):
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def parameters(path):
    """The statements of the parameters cell."""
    (cell,) = [cell for cell in code(path) if "parameters" in tags(cell)]
    return ast.parse(source(cell)).body


def test_every_stage_of_the_pipeline_is_a_notebook_and_the_other_way_round():
    assert [path.stem for path in NOTEBOOKS] == list(pipeline.STAGES)


# --- how a notebook is committed ---


@every_notebook
def test_no_output_and_no_execution_count_is_committed(path):
    for cell in code(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None, source(cell)


@every_notebook
def test_the_kernel_is_python3_and_the_format_is_valid(path):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell["id"] for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


@every_notebook
def test_it_opens_with_its_title_and_number(path):
    first = read(path)["cells"][0]
    assert first["cell_type"] == "markdown"
    assert re.match(rf"# {int(path.stem[:2])} · \S", source(first)), source(first)[:60]


@every_notebook
def test_cells_are_short_and_parse(path):
    for cell in code(path):
        lines = source(cell).strip("\n").split("\n")
        assert source(cell).strip() and (len(lines) <= 25 or "parameters" in tags(cell)), f"{len(lines)}: {lines[0]}"
        assert max(map(len, lines)) <= 120
        ast.parse(source(cell))


@every_notebook
def test_only_exercises_define_anything(path):
    for cell in code(path):
        defined = [n for n in ast.walk(ast.parse(source(cell))) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        assert not defined or tags(cell) & {"exercise", "break-it"}, f"{defined[0].name} belongs in lib/"


@every_notebook
def test_tags_are_known_ones(path):
    for cell in read(path)["cells"]:
        assert tags(cell) <= ASIDE | {"parameters"} and len(tags(cell)) <= 1
        assert cell["cell_type"] == "code" or not tags(cell)


@every_notebook
def test_it_begins_its_own_stage_and_ends_by_finishing_it(path):
    cells = [source(cell) for cell in code(path)]
    begun = [line for cell in cells for line in cell.split("\n") if "stage.begin(" in line]
    assert begun == [f's = stage.begin("{path.stem}", run)']
    assert cells[-1].strip().startswith("s.finish(")
    assert sum("s.finish(" in cell for cell in cells) == 1


@every_notebook
def test_cells_that_make_artifacts_use_nothing_from_cells_for_the_reader(path):
    """Exercises enter no fingerprint, so nothing that is kept may depend on them."""

    def names(cells, context):
        nodes = [n for cell in cells for n in ast.walk(ast.parse(source(cell)))]
        defined = {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        used = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, context)}
        return used | defined if context is ast.Store else used

    aside = [cell for cell in code(path) if tags(cell) & ASIDE]
    kept = [cell for cell in code(path) if not tags(cell) & ASIDE]
    top = {name for name in names(aside, ast.Store) if any(f"def {name}(" in source(cell) for cell in aside)}
    assert not (top & names(kept, ast.Load)) - names(kept, ast.Store)


# --- parameters ---


@every_notebook
def test_parameters_are_annotated_plain_literals(path):
    for node in parameters(path):
        assert isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name), ast.unparse(node)
        value, kind = ast.literal_eval(node.value), ast.unparse(node.annotation)
        assert "|" not in kind, f"papermill reads Optional[...], not {kind}"
        assert pipeline.fits(value, kind), f"{node.target.id}: {kind} = {value!r}"
        assert json.loads(json.dumps(value)) == value


@every_notebook
def test_run_comes_first_and_there_are_seeds(path):
    found = {node.target.id: ast.literal_eval(node.value) for node in parameters(path)}
    assert next(iter(found)) == "run" and found["run"] == "default"
    assert found["seeds"] == [0]


@every_notebook
def test_papermill_and_the_pipeline_see_the_same_parameters(path):
    from papermill import inspect_notebook

    names = [node.target.id for node in parameters(path)]
    assert list(inspect_notebook(str(path))) == names == list(pipeline.defaults(path.stem))


@every_notebook
def test_every_parameter_is_explained_and_used(path):
    (cell,) = [cell for cell in code(path) if "parameters" in tags(cell)]
    for line in source(cell).strip().split("\n"):
        assert re.search(r"  # \S", line), f"no word on what it is: {line}"
    rest = " ".join(source(c) for c in code(path) if c is not cell and not tags(c) & ASIDE)
    for node in parameters(path):
        used = re.search(rf"\b{node.target.id}\b", rest)
        assert used or (node.target.id == "seeds" and "not used" in source(cell)), f"{node.target.id} does nothing"


# --- exercises ---


@every_notebook
def test_every_exercise_holds_one_marked_solution_and_is_checked_next(path):
    cells = code(path)
    exercises = [i for i, cell in enumerate(cells) if "exercise" in tags(cell)]
    assert 2 <= len(exercises) <= 5  # 04 is two lessons in one: rejection sampling, and a writer
    for i in exercises:
        lines = [line.strip() for line in source(cells[i]).split("\n")]
        begin, end = "### BEGIN SOLUTION", "### END SOLUTION"
        assert lines.count(begin) == lines.count(end) == 1 and lines.index(begin) < lines.index(end) - 1
        (defined,) = ast.parse(source(cells[i])).body
        assert isinstance(defined, ast.FunctionDef) and lines.index(begin) == 1
        assert "check" in tags(cells[i + 1])
        assert re.fullmatch(rf'check\("{int(path.stem[:2])}\.\d", {defined.name}\)', source(cells[i + 1]).strip())


@every_notebook
def test_an_exercise_without_its_solution_is_still_python(path):
    """What a reader gets: the solution replaced, as nbgrader does it."""
    for cell in code(path):
        if "exercise" in tags(cell):
            stub = re.sub(
                r"### BEGIN SOLUTION.*### END SOLUTION", "raise NotImplementedError", source(cell), flags=re.S
            )
            assert "SOLUTION" not in stub and ast.parse(stub)


@every_notebook
def test_checks_follow_lib_and_cover_every_exercise(path):
    from importlib import import_module

    lesson = import_module(f"lib.lessons.lesson_{path.stem[:2]}")
    exercises = [i for i, cell in enumerate(code(path)) if "exercise" in tags(cell)]
    checked = [re.search(r'check\("([\d.]+)"', source(code(path)[i + 1]))[1] for i in exercises]
    assert checked == list(lesson.EXERCISES)
    prose = " ".join(source(cell) for cell in read(path)["cells"] if cell["cell_type"] == "markdown")
    for number in checked:
        assert f"### Exercise {number} · " in prose


# --- profiles ---


@every_profile
def test_profiles_name_known_stages_and_parameters_of_the_right_type(path):
    resolved = pipeline.resolve(path.stem, [])
    for stage, values in yaml.safe_load(path.read_text()).items():
        for name, value in values.items():
            assert resolved[stage][name] == value
            assert pipeline.fits(value, pipeline.defaults(stage)[name][1])


@every_profile
def test_profiles_say_what_they_are_for(path):
    assert path.read_text().startswith("# ")


@every_profile
def test_profiles_name_tasks_that_go_together(path):
    from lib.dot.config import check_multi_pass, check_sizes

    own = pipeline.resolve(path.stem, [])["06_dot_training"]
    check_multi_pass([task for task in own["multi_pass"] if task], own["tasks"], own["without_chain"])
    check_sizes(own["tasks"], own["steps"], own["seeds"], own["cot_steps"])


def test_the_profiles_that_the_design_names_are_there_and_say_so():
    assert {"smoke", "seeds"} <= {path.stem for path in PROFILES}
    assert len(pipeline.resolve("seeds", [])["03_sft"]["seeds"]) == 3
    assert "learned" in pipeline.resolve("smoke", [])["09_evaluation"]["note"], "its report must say it means nothing"


@pytest.mark.parametrize(
    "content, words",
    [
        ("14_nothing:\n  steps: 3", "there is no stage '14_nothing'"),
        ("03_sft:\n  stepz: 3", "03_sft has no parameter 'stepz'"),
        ("03_sft:\n  steps: 3.5", "03_sft.steps must be int"),
        ("03_sft:\n  seeds: 3", "03_sft.seeds must be list"),
        ("03_sft:\n  run: mine", "has no parameter 'run'"),
        ("03_sft: 3", "must hold parameters"),
    ],
)
def test_a_wrong_profile_would_be_noticed(content, words, tmp_path, monkeypatch):
    (tmp_path / "wrong.yaml").write_text(content)
    monkeypatch.setattr(pipeline, "PROFILES", tmp_path)
    with pytest.raises(InputError, match=re.escape(words)):
        pipeline.resolve("wrong", [])
