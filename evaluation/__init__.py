"""What an evaluation is made of: the packs that are played, what stands in place of the hints, policies by name,
results that survive a stop, statistics and tables. eval.py calls it. Touch contexts.py for another comparison."""
