"""The one exception for everything a user can mend: a missing file, a broken line, a wrong parameter."""


class InputError(ValueError):
    """Bad input, told in one sentence: what is wrong, where, and what to do about it.

    `run_all.py` prints the sentence and ends with exit code 2; Jupyter shows it without a traceback.
    """

    def _render_traceback_(self):
        # IPython calls this instead of printing a traceback.
        return [f"{type(self).__name__}: {self}"]
