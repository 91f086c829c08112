"""Lessons for a class: what a reader writes is checked, copied without its solutions, handed in and graded.

check.py, lesson_NN.py   check() and hint(); one file of exercises a notebook
build.py                 student copies of the notebooks
bundle.py                a hand-in as one zip; handin.py: what stands in one; archive.py: reading one that nobody trusts
grade.py                 a hand-in graded; plan.py, plans/: by which plan; report.py: what is said of it
sandbox.py               other people's code and models run where they can harm nothing: confine.py makes the walls,
                         worker.py is what runs inside them, plain.py makes plain values of what comes back

`python -m lib.lessons` is the command line. Nothing else of lib knows this folder; the notebooks know check.py alone.
"""
