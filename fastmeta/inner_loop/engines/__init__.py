"""What runs inner loops: each engine has `can_run`, `meta_loss` and `adapt`."""
