"""Which experts every layer used: the trace, its statistics, and the hooks that record it."""
