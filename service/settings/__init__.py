"""The sections of a site's file, one module for each side of the product."""
