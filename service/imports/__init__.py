"""Models made elsewhere become model folders: MONAI bundles and nnU-Net exports.

What their files say is written into ``model.toml`` with its origin beside it. What they can't say (codes, licence, body
part) the caller says. What Overread can't do as they do it is refused by name: nothing is guessed, and nothing of a
bundle is ever run to find out.
"""
