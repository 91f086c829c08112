"""The workbench's code: notebooks import it, and it knows nothing about them (but for stage, launch and lessons)."""
