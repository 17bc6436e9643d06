"""Kill the parts of running jobs, and compare what they leave."""
