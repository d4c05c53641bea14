"""GridNav: walk to a goal in so many moves; the costs of the cells are hidden."""
