"""A patient who does not exist: a CT phantom the project makes itself, with lesions of known place and size.

shapes.py         solids as signed distances, and the canvas that paints them
anatomy.py        the spaces of the body, and the organs that others must know of
organs.py         the body as tables: shape and HU of each organ, in the order of painting
trees.py          branching vessels and airways
phantom.py        chest_abdomen(), tiny(): the volume, the planted lesions, the organs' true masks
phantom_dicom.py  write_series(), write_localizer(): the same as CT Image Storage files
phantom_mr.py     a drawn head in MR, with a mass or without
fitting.py        a phantom that fits what a model selects
"""
