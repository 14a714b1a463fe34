"""Parts that know nothing of the method: each is of use by itself and imports nothing of the project."""
