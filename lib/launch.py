"""Processes: run one notebook in a process of its own, and leave none behind.

`python -m lib.launch JOB.json` is that process: papermill with our settings. It tells its parent in two small files
which cell runs and, if one fails, which and why (papermill's output notebook cannot: a killed kernel leaves every cell
marked "completed").
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from lib.stage import DIRECTORY_VARIABLE, ROOT, die_with_parent, write_json

RESULT, CELL, LOG = "result.json", "cell.json", "log.txt"
NOTEBOOKS = ROOT / "notebooks"


def start_notebook(stage: str, directory: Path, parameters: dict, progress_file: Path) -> subprocess.Popen:
    """Start papermill on a stage's notebook, which writes to `directory`. Ends when this process does."""
    job = {"stage": stage, "directory": str(directory), "parameters": parameters}
    write_json(directory / "job.json", job)
    environment = os.environ | {
        DIRECTORY_VARIABLE: str(directory),
        "WORKBENCH_PROGRESS": str(progress_file),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "TOKENIZERS_PARALLELISM": "false",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "lib.launch", str(directory / "job.json")],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=open(directory / LOG, "a"),
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches run_all.py alone, which ends its children in order
        preexec_fn=as_child,
    )


def as_child() -> None:
    """In the new process: end when we do, and hear SIGINT even where a shell had us ignore it."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop(process: subprocess.Popen) -> None:
    """End a notebook's process and its kernel: politely first, then not."""
    for sign, patience in ((signal.SIGINT, 5), (signal.SIGKILL, 5)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, sign)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def run_job(job: dict) -> dict:
    """Execute a job's notebook and make an HTML copy.

    {"ok": True} or {"ok": False, "cell", "line" (the first of that cell), "kind", "message", "traceback"}
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    directory = Path(job["directory"])
    at = {"cell": 0, "line": ""}

    def on_cell_start(cell, cell_index):
        at.update(cell=cell_index, line=cell["source"].strip().partition("\n")[0])
        write_json(directory / CELL, at)

    def literally(path: Path) -> str:
        return str(path).replace("{", "{{").replace("}", "}}")  # papermill formats the paths that it is given

    with open(directory / LOG, "a") as log:
        try:
            papermill.execute_notebook(
                literally(NOTEBOOKS / f"{job['stage']}.ipynb"),
                literally(directory / "notebook.ipynb"),
                parameters=job["parameters"],
                kernel_name="python3",
                cwd=NOTEBOOKS,
                progress_bar=False,
                log_output=False,
                stdout_file=log,
                stderr_file=log,
                start_timeout=300,
                iopub_timeout=60,
                store_widget_state=False,
                coalesce_streams=True,
                skip_cells_with_tag="break-it",  # they show what fails
                on_cell_start=on_cell_start,
            )
        except PapermillExecutionError as error:
            text = "\n".join(re.sub(r"\x1b\[[0-9;]*m", "", line) for line in error.traceback)
            return {"ok": False, **at, "kind": error.ename, "message": error.evalue, "traceback": text}
        except DeadKernelError:
            message = "the kernel died (killed, or out of memory)"
            return {"ok": False, **at, "kind": "DeadKernel", "message": message, "traceback": ""}
    to_html(directory / "notebook.ipynb")
    return {"ok": True}


def to_html(notebook: Path) -> None:
    """An HTML copy beside an executed notebook, with its pictures inside."""
    import nbconvert

    html, _ = nbconvert.HTMLExporter(embed_images=True).from_filename(str(notebook))
    notebook.with_suffix(".html").write_text(html)


def main() -> None:
    """The notebook's process: run the job and leave its result beside the notebook."""
    job = json.loads(Path(sys.argv[1]).read_text())
    result = run_job(job)
    write_json(Path(job["directory"]) / RESULT, result)
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
