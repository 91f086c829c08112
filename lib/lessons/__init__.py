"""Lessons: checks of what a reader wrote (one file of exercises a notebook), student copies, grades, hand-ins."""
