"""A data set by URI -> checked arrays and a fingerprint; and whether it is what it was.

`source` is the way in. Behind it `files` finds and reads what a data set is of, `arrays` opens what
files hold without trusting them, and `examples` makes pixels and labels of it. `shards` tells what
was seen of data that grow, and what of them is never trained on; `scratch` puts them together.
"""
