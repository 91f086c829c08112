"""Where problems come from: one file a source. A task knows `lib.problems` and nothing else of the workbench."""
