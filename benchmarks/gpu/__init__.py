"""What gpu.sh does on a GPU. run.py starts the parts one after the other and writes the report; part.py is the process
of one part; the parts are in smoke.py, speed.py, memory.py and learning.py, and what they have in common in common.py.

To touch: a part; a new one is added to `PARTS` of run.py and of part.py.
"""
