"""Whether what a user's function reads beside its arguments is as it was."""
