"""Learning by doing: exercises that answer back, and labs made from one source.

`check("fgsm-step", my_function)` says at once whether an answer is right, and what is wrong with it where it is not.
`kit lab build`, `kit lab collect`, `kit lab check` and `kit lab export` take a lab from its source to the grades.
"""
from kit.lab import exercises
from kit.lab.exercise import EXERCISES, Exercise, Verdict, Wrong, check, exercise, judge, marks, marks_number

__all__ = [
    "check", "Exercise", "exercise", "EXERCISES", "exercises", "judge", "marks", "marks_number", "Verdict", "Wrong",
]
