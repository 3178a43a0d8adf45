"""The torch side of mimexport: backbone + aggregator -> graph -> artifact -> engine."""
