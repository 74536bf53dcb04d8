"""The operations page: what the API knows, for people. Rendered here, small, in English and Chinese."""
