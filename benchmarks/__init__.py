"""What the project is measured with: scripts to start, each with its command at the top.

The figures in README.md and docs/ are what they print; tests call some of their functions, nothing else does. Beside
the scripts: shared.py (settings and random models that several need), gpu/ (the parts of gpu.sh), models/ (the parts of
architectures.py), peer_trl.py (the other side of peer.py). To touch: anything; the method does not depend on it.
"""
