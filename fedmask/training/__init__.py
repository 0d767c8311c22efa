"""What one client does with a mask: deltas, gradients, local steps, scoring."""
