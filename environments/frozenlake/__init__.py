"""FrozenLake-Obscure: walk over a lake with holes; what the numbered actions do is hidden."""
