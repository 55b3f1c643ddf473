"""Tokens that clients of the server show; neither torch nor MONAI Label is needed."""
