"""The exercise: ``make exercise`` makes a work folder with blanks, ``make grade`` in it says what is right.

* ``tasks.py``: the tasks, their levels, and what a grade consists of.
* ``blanks.py``: finds the tasks in the sources and makes the work folder.
* ``grading.py``: grades a work folder, each task in a process of its own, and prints the table.
* ``network_tasks.py``, ``kernel_tasks.py``, ``calibration_tasks.py``, ``projects.py``: how a task is graded, in that
  process; ``checks.py`` and ``layer_norms.py``: what they share.

docs/tutorial/ has a page for each task.
"""
