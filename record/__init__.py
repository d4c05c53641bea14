"""A training run on disk and what is seen of it: its folder, checkpoints and metrics (run.py, metrics.py), tables and
pictures (pictures.py). train.py and eval.py call it. What a run reports is changed in metrics.py."""
