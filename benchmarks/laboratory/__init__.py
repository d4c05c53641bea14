"""What study.py does. experiments.py and the modules it lists say what is asked; jobs.py and plan.py turn that into
trainings with all evaluations wanted of them; work.py is the process of one job, running.py starts them; results.py
reads what was found, claims.py decides, page.py writes it down.

To touch: an experiment; a new one is added to `EXPERIMENTS`.
"""
