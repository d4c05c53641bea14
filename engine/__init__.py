"""From conversations to tokens and back: the machinery between the method's scripts and a Hugging Face model.

    weights    the model: precision, merging the adapter, log-probabilities for training
    generate   the sampler to read: transformers' own `generate`; works for every architecture
    fast       the same samples from a KV cache of its own, for models that keep keys and values
    policy     a chat format, the weights and the sampler that fits them; what train.py and eval.py use
    probe      does a sampler say the same as the trainer, at every length where the model may change its ways?

The scripts call `Policy`. To change how a token is drawn, touch `Weights.draw`; everything else here is for speed.
"""
