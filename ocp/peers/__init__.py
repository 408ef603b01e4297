"""Other people's solvers, where they are installed, on the same problems: for `ocp.bench`."""
