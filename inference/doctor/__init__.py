"""What may be wrong with this machine, as findings: each with a severity, one sentence and one action."""
