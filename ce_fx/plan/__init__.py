"""Planning: exact costs, tree search, cost models. Knows the algebra only, neither torch nor FX."""
