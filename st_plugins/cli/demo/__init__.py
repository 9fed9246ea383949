"""``st-plugins demo``: the steps, and what they work on."""
