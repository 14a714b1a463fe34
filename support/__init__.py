"""Parts that know nothing of the method and import nothing of the project."""
