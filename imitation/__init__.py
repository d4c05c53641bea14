"""Imitation of scripted players: how a model is taught (teaching), and how the embedded policy is built (embedded)."""
