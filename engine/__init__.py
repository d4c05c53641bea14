"""From conversations to tokens and back. train.py, eval.py and imitate.py call `Policy` (policy.py) and
`training_batches` (batches.py).

To touch: settings.py (a setting and its bounds), generate.py (how a token is sampled), chat.py (templates). Machinery:
fast.py and row_cache.py (a sampler with its own KV cache), probe.py (which sampler serves a model), batches.py
(beginnings that sequences share), weights.py (merging, log-probabilities), processes.py (several GPUs), start.py
(before torch is imported), command_line.py, build.py, check.py.
"""
