"""The workloads of arXiv 2401.03384: every way to evaluate a factorised network, its time and its bytes."""
