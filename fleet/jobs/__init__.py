"""GPU jobs on temporary EC2 instances."""
