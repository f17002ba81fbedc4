"""`runrecords doctor`: what it looks at, here and outside, and what it says."""
