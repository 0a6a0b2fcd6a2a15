"""The auditor: samples committed work, recomputes it, attests on chain."""
