"""Progress of slow work: a bar where someone watches, a small file where `run_all.py` does.

Methods report here and know nothing of who listens.
"""

import json
import os
import time
from pathlib import Path

FILE_VARIABLE = "WORKBENCH_PROGRESS"  # set by the pipeline: where to write instead of drawing a bar


class Bar:
    """`with Bar("training", total) as bar: bar.update(loss="0.31")`: one call of update a finished piece of work."""

    def __init__(self, label: str, total: int, done: int = 0):
        self.label, self.total, self.done, self.note = label, total, done, ""
        self.file = os.environ.get(FILE_VARIABLE)
        self.written = 0.0
        self.bar = None
        if not self.file:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=total, initial=done, desc=label, mininterval=0.3)

    def __enter__(self):
        self._write()
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()
        self._write()

    def update(self, n: int = 1, **note) -> None:
        """`n` more pieces are done; `note` (such as loss="0.31") stands beside the bar."""
        self.done += n
        self.note = " ".join(f"{key} {value}" for key, value in note.items()) or self.note
        if self.bar is not None:
            self.bar.update(n)
            if note:
                self.bar.set_postfix_str(self.note, refresh=False)
        elif time.monotonic() - self.written > 0.25:
            self._write()

    def _write(self) -> None:
        if self.file:
            self.written = time.monotonic()
            state = {"label": self.label, "done": self.done, "total": self.total, "note": self.note}
            partial = Path(self.file + ".tmp")
            partial.write_text(json.dumps(state))
            os.replace(partial, self.file)
