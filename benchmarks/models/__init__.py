"""Parts of architectures.py. tiny.py makes a tiny random model of any causal-LM type, with the configuration of
sizes.py, which follows rules.py or one of the published shapes in shapes.py. examine.py takes it the whole way of a
training, page.py writes down what was found.

To touch: rules.py where transformers has a new type that does not get tiny by itself; shapes.py for a new model family.
"""
