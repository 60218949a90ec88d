"""Stress: what happens to the package when everything around it goes wrong; `run.PARTS` lists the parts."""
